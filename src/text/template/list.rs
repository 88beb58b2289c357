//! Lists that grow: `{% set x = [] %}` … `x.append(y)`, which some templates need although the engine's values never change.

use minijinja::value::{Enumerator, Object, ObjectRepr, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use std::sync::{Arc, Mutex, PoisonError};

/// Items one list may hold.
const MAX_ITEMS: usize = 100_000;

/// A list with Python's mutating methods; lives for one rendering.
#[derive(Debug, Default)]
pub(super) struct GrowingList {
    items: Mutex<Vec<Value>>,
}

impl GrowingList {
    fn with<R>(&self, work: impl FnOnce(&mut Vec<Value>) -> R) -> R {
        work(&mut self.items.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, values: Vec<Value>) -> Result<(), Error> {
        self.with(|items| {
            if items.len() + values.len() > MAX_ITEMS {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("a list of more than {MAX_ITEMS} items")));
            }
            items.extend(values);
            Ok(())
        })
    }
}

/// A growing list inside of another is copied: so none can ever contain itself.
fn frozen(value: &Value) -> Value {
    match value.downcast_object_ref::<GrowingList>() {
        Some(list) => Value::from(list.with(|items| items.clone())),
        None => value.clone(),
    }
}

impl Object for GrowingList {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let index = key.as_i64()?;
        self.with(|items| {
            let index = if index < 0 { index.checked_add(items.len() as i64)? } else { index };
            items.get(usize::try_from(index).ok()?).cloned()
        })
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.with(|items| items.clone()))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.with(|items| items.len()))
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.with(|items| !items.is_empty())
    }

    fn call_method(self: &Arc<Self>, _state: &mut State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        match method {
            "append" => {
                let (value,): (&Value,) = from_args(args)?;
                self.add(vec![frozen(value)])?;
            }
            "extend" => {
                let (values,): (&Value,) = from_args(args)?;
                self.add(values.try_iter()?.take(MAX_ITEMS + 1).map(|value| frozen(&value)).collect())?;
            }
            "insert" => {
                let (at, value): (i64, &Value) = from_args(args)?;
                let value = frozen(value);
                self.add(Vec::new())?;
                self.with(|items| {
                    let length = items.len() as i64;
                    let at = if at < 0 { at.saturating_add(length) } else { at }.clamp(0, length);
                    items.insert(at as usize, value);
                });
            }
            "pop" => {
                let (at,): (Option<i64>,) = from_args(args)?;
                return self.with(|items| {
                    let length = items.len() as i64;
                    let at = at.unwrap_or(-1);
                    let at = if at < 0 { at.saturating_add(length) } else { at };
                    if !(0..length).contains(&at) {
                        return Err(Error::new(ErrorKind::InvalidOperation, "pop index out of range"));
                    }
                    Ok(items.remove(at as usize))
                });
            }
            "clear" => self.with(Vec::clear),
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        }
        Ok(Value::from(()))
    }
}
