//! A chat request's conversation to the prompt's text: messages checked, given to the model's chat template.

use super::backend::Served;
use super::error::ApiError;
use super::wire::chat::{ChatMessage, ChatRequest, Content, Tool};
use crate::text::{ChatInput, ChatTemplate};
use serde_json::{Map, Value, json};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Renders the prompt of a valid request.
pub fn render(served: &Served, request: &ChatRequest) -> Result<String, ApiError> {
    let Some(template) = &served.template else {
        let message = format!(
            "the model '{}' has no chat template; use /v1/completions, or configure chat_template for it",
            served.id
        );
        return Err(ApiError::bad_request(message).param("messages").code("no_chat_template"));
    };
    let messages = messages(request.messages.as_deref().unwrap_or_default(), template)?;
    let last = messages.last().and_then(|message| message["content"].as_str()).unwrap_or_default().to_owned();
    let continues = request.continue_final_message.unwrap_or(false);
    if continues && request.messages.iter().flatten().last().is_none_or(|message| message.role != "assistant") {
        return Err(ApiError::invalid("continue_final_message", "the last message must be the assistant's"));
    }
    if continues && request.add_generation_prompt == Some(true) {
        return Err(ApiError::invalid("continue_final_message", "excludes add_generation_prompt"));
    }
    let input = ChatInput {
        messages: Value::Array(messages),
        tools: tools(request)?,
        documents: None,
        add_generation_prompt: request.add_generation_prompt.unwrap_or(true) && !continues,
        extra: extra(request),
        now: jiff::Zoned::now().datetime(),
    };
    let mut text = template.render(&input).map_err(|error| unrendered(&error))?;
    if continues {
        // The template closed the message; the answer goes on where its text ends.
        let last = last.trim_end();
        let Some(at) = text.rfind(last).filter(|_| !last.is_empty()) else {
            let why = "the chat template does not show the last message's text as it is; it cannot be continued";
            return Err(ApiError::invalid("continue_final_message", why));
        };
        text.truncate(at + last.len());
    }
    Ok(text)
}

/// 400 for a conversation that the template refuses, or that makes it exceed its limits.
fn unrendered(error: &crate::text::Error) -> ApiError {
    let code = match error {
        crate::text::Error::TemplateRaised { .. } => "template_raised",
        crate::text::Error::TemplateLimit { .. } => "template_limit",
        _ => "template_failed",
    };
    ApiError::bad_request(error.to_string()).param("messages").code(code)
}

/// Whether the request offers tools that the model may use.
fn offers_tools(request: &ChatRequest) -> bool {
    let none = request.tool_choice.as_ref().is_some_and(|choice| choice == "none");
    !none && request.tools.as_ref().is_some_and(|tools| !tools.is_empty())
}

fn messages(messages: &[ChatMessage], template: &ChatTemplate) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "at least one is needed"));
    }
    let developer = template.source().contains("developer");
    messages.iter().enumerate().map(|(i, message)| check(i, message, developer)).collect()
}

/// One message as the template reads it: its content a plain string.
fn check(i: usize, message: &ChatMessage, knows_developer: bool) -> Result<Value, ApiError> {
    let refuse = |why: String| Err(ApiError::invalid("messages", format!("[{i}]: {why}")));
    let role = message.role.as_str();
    if !ROLES.contains(&role) {
        return refuse(format!("the role must be one of {}, not '{role}'", ROLES.join(", ")));
    }
    let calls = message.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty());
    if calls && role != "assistant" {
        return refuse(format!("tool_calls belong to the assistant, not to the role '{role}'"));
    }
    if message.tool_calls.iter().flatten().any(|call| !call.is_object()) {
        return refuse("each of tool_calls must be an object".into());
    }
    let content = match &message.content {
        None if role == "assistant" => String::new(),
        None => return refuse("content is missing".into()),
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Parts(parts)) => {
            let mut texts = Vec::new();
            for part in parts {
                match (part.kind.as_str(), &part.text) {
                    ("text", Some(text)) => texts.push(text.as_str()),
                    ("text", None) => return refuse("a part of type text has no text".into()),
                    (kind, _) => return refuse(format!("parts of type '{kind}' are not supported; send text only")),
                }
            }
            texts.join("\n")
        }
    };
    let mut fields = message.other.clone();
    // Templates written before OpenAI renamed the role refuse or skip it.
    let role = if role == "developer" && !knows_developer { "system" } else { role };
    fields.insert("role".into(), role.into());
    fields.insert("content".into(), content.into());
    let optional = [
        ("name", message.name.clone().map(Value::from)),
        ("tool_calls", message.tool_calls.clone().filter(|_| calls).map(Value::from)),
        ("tool_call_id", message.tool_call_id.clone().map(Value::from)),
    ];
    fields.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    Ok(Value::Object(fields))
}

/// The tools that the model may use, as its template and the reader of its answer want them.
pub fn tools(request: &ChatRequest) -> Result<Option<Value>, ApiError> {
    match request.tool_choice.as_ref() {
        None | Some(Value::Null) => {}
        Some(Value::String(choice)) if choice == "auto" || choice == "none" => {}
        Some(_) => {
            return Err(ApiError::unsupported("tool_choice", "send auto or none, and ask for the call in words"));
        }
    }
    for (i, tool) in request.tools.iter().flatten().enumerate() {
        if tool.kind != "function" {
            return Err(ApiError::invalid("tools", format!("[{i}]: the type must be function, not '{}'", tool.kind)));
        }
        if tool.function.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err(ApiError::invalid("tools", format!("[{i}]: the function has no name")));
        }
    }
    if !offers_tools(request) {
        return Ok(None);
    }
    let as_value = |tool: &Tool| json!({"type": tool.kind, "function": tool.function});
    Ok(Some(request.tools.iter().flatten().map(as_value).collect()))
}

/// Variables of the template besides messages and tools; `chat_template_kwargs` wins.
fn extra(request: &ChatRequest) -> Map<String, Value> {
    let mut extra = Map::new();
    if let Some(effort) = &request.reasoning_effort {
        extra.insert("reasoning_effort".into(), effort.clone().into());
    }
    if let Some(thinking) = request.enable_thinking {
        extra.insert("enable_thinking".into(), thinking.into());
    }
    extra.extend(request.chat_template_kwargs.clone().unwrap_or_default());
    extra
}
