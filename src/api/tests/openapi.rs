//! The OpenAPI document is complete and the checked-in one is up to date.

use super::*;
use std::path::Path;

/// Names of a request's fields, through `allOf` and references.
pub fn fields(document: &Value, path: &str) -> Vec<String> {
    let schema = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
    let mut names = Vec::new();
    gather(document, schema, &mut names);
    assert!(names.len() > 20, "{names:?}");
    names
}

fn gather(document: &Value, schema: &Value, names: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        gather(document, document.pointer(reference.trim_start_matches('#')).unwrap(), names);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        gather(document, part, names);
    }
    names.extend(schema["properties"].as_object().into_iter().flat_map(|fields| fields.keys().cloned()));
}

/// `docs/openapi.json` is what the types say. `OMNI_WRITE_OPENAPI=1 cargo test openapi` writes it anew.
#[test]
fn the_document_is_checked_in() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let document = crate::api::openapi::document().unwrap();
    if std::env::var_os("OMNI_WRITE_OPENAPI").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &document).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == document,
        "docs/openapi.json is out of date; write it with OMNI_WRITE_OPENAPI=1 cargo test openapi"
    );
}

#[test]
fn every_reference_resolves() {
    fn check(document: &Value, value: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
                }
                fields.values().for_each(|value| check(document, value));
            }
            Value::Array(items) => items.iter().for_each(|value| check(document, value)),
            _ => {}
        }
    }
    let document: Value = serde_json::from_str(&crate::api::openapi::document().unwrap()).unwrap();
    check(&document, &document);
}
