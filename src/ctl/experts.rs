//! `omnictl status --experts`: how often each expert of a loaded model was chosen, layer by layer.

use super::client::Client;
use super::error::Error;
use super::models::STATUS;
use super::output::Output;
use crate::api::control::{ExpertChoices, LayerChoices, ModelState, Status};
use comfy_table::Cell;
use serde::Serialize;

/// Experts of a layer that are named.
const TOP: usize = 4;

/// A model and its experts.
#[derive(Serialize)]
struct OfModel {
    model: String,
    #[serde(flatten)]
    choices: ExpertChoices,
}

/// Shows one model's experts, or those of all that are loaded and have some.
///
/// # Errors
/// The daemon cannot be reached; there is no such model, or it has no experts.
pub async fn show(client: &Client, model: Option<&str>, out: Output) -> Result<(), Error> {
    let mut found = Vec::new();
    for id in ids(client, model).await? {
        match client.get(&path(&id)).await {
            Ok(choices) => found.push(OfModel { model: id, choices }),
            // One of all may have none.
            Err(Error::Refused { status, .. }) if model.is_none() && status == http::StatusCode::NOT_FOUND => {}
            Err(error) => return Err(error),
        }
    }
    if out.json {
        return out.value(&found);
    }
    if found.is_empty() {
        return out.line("no loaded model has experts");
    }
    let texts: Vec<String> = found.iter().map(|of| text(of, out)).collect();
    out.line(&texts.join("\n\n"))
}

async fn ids(client: &Client, model: Option<&str>) -> Result<Vec<String>, Error> {
    if let Some(model) = model {
        return Ok(vec![model.to_owned()]);
    }
    let status: Status = client.get(STATUS).await?;
    let ready = status.models.into_iter().filter(|model| model.state == ModelState::Ready);
    Ok(ready.map(|model| model.id).collect())
}

fn path(id: &str) -> String {
    format!("/control/v1/models/{}/experts", super::client::segment(id))
}

fn text(of: &OfModel, out: Output) -> String {
    let experts = of.choices.layers.first().map_or(0, |layer| layer.chosen.len());
    let head = format!("{}: {} of {experts} experts per token and layer", out.bold(&of.model), of.choices.used);
    let columns = [
        ("LAYER", true),
        ("CHOICES", true),
        ("MIN", true),
        ("MEDIAN", true),
        ("MAX", true),
        ("SKEW", true),
        ("UNUSED", true),
        ("MOST CHOSEN", false),
    ];
    let table = out.table(&columns, of.choices.layers.iter().map(row));
    let note = out.dim("shares of a layer's choices; skew 1: all experts are used alike");
    format!("{head}\n{table}\n{note}")
}

fn row(layer: &LayerChoices) -> Vec<Cell> {
    let (skew, percent) = (layer.skew(), |share: f64| format!("{:.2}%", 100.0 * share));
    let top = layer.top(TOP).into_iter().map(|(expert, share)| format!("{expert} ({})", percent(share)));
    vec![
        Cell::new(layer.layer),
        Cell::new(layer.total()),
        Cell::new(percent(skew.min)),
        Cell::new(percent(skew.median)),
        Cell::new(percent(skew.max)),
        Cell::new(format!("{:.1}", skew.skew)),
        Cell::new(skew.unused),
        Cell::new(top.collect::<Vec<_>>().join(", ")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_summed_up() {
        let layer = LayerChoices { layer: 3, chosen: vec![2, 0, 10, 4, 4] };
        let skew = layer.skew();
        assert_eq!((layer.total(), skew.unused), (20, 1));
        assert_eq!((skew.min, skew.median, skew.max, skew.skew), (0.0, 0.2, 0.5, 2.5));
        assert_eq!(layer.top(3), [(2, 0.5), (3, 0.2), (4, 0.2)]);
        assert_eq!(LayerChoices { layer: 0, chosen: vec![1, 3] }.skew().median, 0.5);
        let nothing = LayerChoices { layer: 0, chosen: vec![0; 8] };
        assert_eq!((nothing.skew().max, nothing.skew().unused, nothing.top(4)), (0.0, 8, vec![]));
    }

    #[test]
    fn a_table_names_the_most_chosen() {
        let layers = vec![LayerChoices { layer: 1, chosen: vec![1, 7] }];
        let of = OfModel { model: "m".into(), choices: ExpertChoices { used: 1, layers } };
        let text = text(&of, Output::new(false, crate::ctl::output::ColorChoice::Never));
        assert!(text.contains("1 of 2 experts") && text.contains("1 (87.50%), 0 (12.50%)"), "{text}");
    }
}
