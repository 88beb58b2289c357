//! Rows as a table for people and as CSV for programs.

use super::profile::ProfileRow;
use super::row::Row;
use crate::ctl::output::{Output, bytes, count};
use comfy_table::{Cell, Color};

/// The rows as a table, the peer's columns where there is one, and below it the profiles.
pub fn table(rows: &[Row], out: Output) -> String {
    let with_peer = rows.iter().any(|row| row.peer.is_some());
    let mut columns = vec![
        ("MODEL", false),
        ("SIZE", true),
        ("PARAMS", true),
        ("THREADS", true),
        ("ISA", false),
        ("KV", false),
        ("TEST", false),
        ("TOKENS/S", true),
        ("MEDIAN", true),
        ("RATE", true),
    ];
    if with_peer {
        columns.extend([("PEER", true), ("RATIO", true)]);
    }
    let cells = rows.iter().map(|row| {
        let rate = match (row.gigabytes_per_second, row.gigaoperations_per_second) {
            (Some(rate), _) => format!("{rate:.1} GB/s"),
            (_, Some(rate)) => format!("{rate:.0} GOP/s"),
            _ => String::new(),
        };
        let mut cells: Vec<Cell> = [
            row.model.clone(),
            bytes(row.model_size),
            count(row.model_n_params),
            row.threads.to_string(),
            row.isa.clone(),
            row.type_k.clone(),
            row.case().label(),
            format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts),
            format!("{:.2}", row.median_ts),
            rate,
        ]
        .map(Cell::new)
        .into();
        match &row.peer {
            Some(peer) => {
                cells.push(Cell::new(format!("{:.2}", peer.median_ts)));
                let color = if peer.ratio >= 1.0 { Color::Green } else { Color::Red };
                cells.push(Cell::new(format!("{:.2}x", peer.ratio)).fg(color));
            }
            None if with_peer => cells.extend([Cell::new("-"), Cell::new("-")]),
            None => {}
        }
        cells
    });
    let mut text = out.table(&columns, cells);
    for row in rows {
        if let Some(profile) = &row.profile {
            text += &format!("\n\n{}\n", out.bold(&format!("{}, {} threads", row.case().label(), row.threads)));
            text += &profile_table(profile, out);
        }
    }
    text
}

fn profile_table(rows: &[ProfileRow], out: Output) -> String {
    let columns = [
        ("OPERATION", false),
        ("WEIGHTS", false),
        ("TYPES", false),
        ("CALLS/STEP", true),
        ("MS/STEP", true),
        ("SHARE", true),
        ("GB/S", true),
        ("GOP/S", true),
    ];
    let number = |n: f64, digits: usize| if n > 0.0 { format!("{n:.digits$}") } else { String::new() };
    out.table(
        &columns,
        rows.iter().map(|row| {
            [
                row.op.clone(),
                row.weights.clone(),
                row.types.clone(),
                number(row.calls, 0),
                format!("{:.3}", row.milliseconds),
                format!("{:.1}%", 100.0 * row.share),
                number(row.gigabytes_per_second, 1),
                number(row.gigaoperations_per_second, 1),
            ]
            .map(Cell::new)
            .into()
        }),
    )
}

/// The rows as CSV (RFC 4180) with a head; samples are separated by blanks.
pub fn csv(rows: &[Row]) -> String {
    let mut text = String::from(
        "model,model_filename,model_size,model_n_params,threads,isa,n_ubatch,type_k,type_v,n_prompt,n_gen,depth,batch,\
         avg_ts,stddev_ts,median_ts,samples_ts,peer,peer_avg_ts,peer_median_ts,ratio\r\n",
    );
    for row in rows {
        let samples = row.samples_ts.iter().map(|sample| format!("{sample:.4}")).collect::<Vec<_>>().join(" ");
        let peer = row.peer.as_ref().map_or([const { String::new() }; 4], |peer| {
            [
                peer.name.clone(),
                format!("{:.4}", peer.avg_ts),
                format!("{:.4}", peer.median_ts),
                format!("{:.4}", peer.ratio),
            ]
        });
        let fields = [
            row.model.clone(),
            row.model_filename.clone(),
            row.model_size.to_string(),
            row.model_n_params.to_string(),
            row.threads.to_string(),
            row.isa.clone(),
            row.n_ubatch.to_string(),
            row.type_k.clone(),
            row.type_v.clone(),
            row.n_prompt.to_string(),
            row.n_gen.to_string(),
            row.depth.to_string(),
            row.batch.to_string(),
            format!("{:.4}", row.avg_ts),
            format!("{:.4}", row.stddev_ts),
            format!("{:.4}", row.median_ts),
            samples,
        ];
        let quoted: Vec<String> = fields.iter().chain(&peer).map(|field| quote(field)).collect();
        text += &quoted.join(",");
        text += "\r\n";
    }
    text
}

/// A field in quotes where it must be.
fn quote(field: &str) -> String {
    match field.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::row::PeerRow;
    use super::*;

    pub(in super::super) fn row(n_gen: usize, depth: usize, threads: usize, speed: f64) -> Row {
        Row {
            model: "a \"small\" model, random".into(),
            model_filename: "/m.gguf".into(),
            model_size: 1 << 30,
            model_n_params: 1_500_000_000,
            threads,
            n_threads: threads,
            isa: "avx2".into(),
            n_ubatch: 512,
            type_k: "f16".into(),
            type_v: "f16".into(),
            n_prompt: if n_gen == 0 { 512 } else { 0 },
            n_gen,
            depth,
            n_depth: depth,
            batch: 1,
            avg_ts: speed,
            stddev_ts: 0.25,
            median_ts: speed,
            samples_ts: vec![speed, speed],
            gigabytes_per_second: Some(20.0),
            gigaoperations_per_second: None,
            peer: None,
            profile: None,
        }
    }

    #[test]
    fn csv_quotes_what_it_must() {
        let text = csv(&[row(64, 0, 2, 10.0)]);
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines.len(), 3, "head, row, end");
        assert!(lines[1].starts_with(
            "\"a \"\"small\"\" model, random\",/m.gguf,1073741824,1500000000,2,avx2,512,f16,f16,0,64,0,1,10.0000,"
        ));
        let fields = |line: &str| line.replace("\"a \"\"small\"\" model, random\"", "x").split(',').count();
        assert_eq!(fields(lines[0]), fields(lines[1]));
    }

    #[test]
    fn the_peer_has_columns_where_there_is_one() {
        let out = Output { json: false, color: false };
        assert!(!table(&[row(64, 0, 2, 10.0)], out).contains("RATIO"));
        let mut with = row(64, 0, 2, 10.0);
        with.peer = PeerRow::new("llama.cpp", vec![5.0, 5.0], &[10.0, 10.0]);
        let text = table(&[row(0, 0, 2, 99.0), with], out);
        assert!(text.contains("RATIO") && text.contains("2.00x") && text.contains("tg64"), "{text}");
    }
}
