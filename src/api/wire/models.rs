//! `/v1/models` and `/health`.

use crate::api::control::ModelState;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The models there are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// Models.
    pub data: Vec<ModelCard>,
}

impl ModelList {
    /// A list of these.
    pub fn new(data: Vec<ModelCard>) -> Self {
        ModelList { object: "list".into(), data }
    }
}

/// One model as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelCard {
    /// What a request names.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Unix seconds: when it was loaded or configured.
    pub created: u64,
    /// `omni-inferd`.
    pub owned_by: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// Context in tokens, once loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<usize>,
    /// What the model is doing; the daemon says it, a worker of its own does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ModelState>,
}

impl ModelCard {
    /// A card; `created` in Unix seconds.
    pub fn new(id: &str, aliases: &[String], created: u64, context_length: Option<usize>) -> Self {
        ModelCard {
            id: id.into(),
            object: "model".into(),
            created,
            owned_by: "omni-inferd".into(),
            aliases: aliases.to_vec(),
            context_length,
            state: None,
        }
    }
}

/// `/health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

impl Default for Health {
    fn default() -> Self {
        Health { status: "ok".into() }
    }
}
