//! Fields that other servers know and this one does not, and that would change the result: refused, never ignored.
//! A field set to its neutral value (`null`, `false`, 0, empty) changes nothing and is let through.

use super::error::ApiError;
use serde_json::{Map, Value};

/// Field and what to do without it.
const FIELDS: &[(&str, &str)] = &[
    ("suffix", "there is no fill-in-the-middle yet; write the model's own markers into the prompt"),
    ("grammar", "leave it out and check the answer"),
    ("json_schema", "leave it out and check the answer"),
    ("guided_json", "leave it out and check the answer"),
    ("guided_regex", "leave it out and check the answer"),
    ("guided_choice", "leave it out and check the answer"),
    ("guided_grammar", "leave it out and check the answer"),
    ("structured_outputs", "leave it out and check the answer"),
    ("functions", "use tools"),
    ("function_call", "use tool_choice"),
    ("audio", "this server writes text only"),
    ("web_search_options", "this server reaches no network"),
    ("use_beam_search", "sample instead"),
    ("min_tokens", "use ignore_eos with max_tokens"),
    ("bad_words", "use logit_bias"),
    ("allowed_token_ids", "use logit_bias"),
    ("logits_processors", "use logit_bias"),
    ("prompt_logprobs", "use /v1/completions with echo and logprobs"),
    ("truncate_prompt_tokens", "shorten the prompt"),
    ("mirostat", "use min_p or typical_p"),
    ("dynatemp_range", "use temperature"),
    ("xtc_probability", "use min_p"),
    ("dry_multiplier", "use repetition_penalty or frequency_penalty"),
    ("top_n_sigma", "use min_p"),
    ("min_keep", "leave it out"),
    ("samplers", "leave it out; the order of samplers is fixed"),
    ("lora", "load a model with the adapter merged"),
    ("documents", "put them into the messages"),
    ("chat_template", "configure chat_template for the model"),
];

/// Refuses the first of `other` that would change the result.
pub fn refuse(other: &Map<String, Value>) -> Result<(), ApiError> {
    for (field, remedy) in FIELDS {
        if other.get(*field).is_some_and(|value| !neutral(value)) {
            return Err(ApiError::unsupported(field, remedy));
        }
    }
    let spoken = |kind: &Value| kind.as_str() != Some("text");
    if other.get("modalities").and_then(Value::as_array).is_some_and(|kinds| kinds.iter().any(spoken)) {
        return Err(ApiError::unsupported("modalities", "this server writes text only"));
    }
    Ok(())
}

fn neutral(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn other(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn refuses_what_would_change_the_result_and_nothing_else() {
        refuse(&other(json!({"user": "x", "store": true, "frobnicate": [1], "modalities": ["text"]}))).unwrap();
        refuse(&other(json!({"suffix": null, "mirostat": 0, "grammar": "", "use_beam_search": false}))).unwrap();
        for (field, value) in [("suffix", json!("x")), ("mirostat", json!(2)), ("functions", json!([{}]))] {
            let error = refuse(&other(json!({field: value}))).unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(field)));
        }
        assert_eq!(refuse(&other(json!({"modalities": ["text", "audio"]}))).unwrap_err().status, 400);
    }
}
