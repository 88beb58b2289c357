//! Functions and filters that transformers adds to the engine, or that Jinja has and the engine has not.

use super::list::GrowingList;
use super::{Raised, convert, json, rewrite};
use minijinja::{Environment, Error, ErrorKind, Value};

/// Adds them all.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("from_json", from_json);
    environment.add_filter("fromjson", from_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function(rewrite::NEW_LIST, || Value::from_object(GrowingList::default()));
}

/// `strftime_now(format)` at a fixed time.
pub(super) fn strftime_at(now: jiff::civil::DateTime) -> Value {
    Value::from_function(move |format: &str| -> Result<String, Error> {
        jiff::fmt::strtime::format(format, now)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
    })
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let raised = Raised(message.to_string());
    Err(Error::new(ErrorKind::InvalidOperation, raised.0.clone()).with_source(raised))
}

fn from_json(text: &str) -> Result<Value, Error> {
    let parsed: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("from_json: {error}")))?;
    Ok(convert::to_engine(&parsed))
}
