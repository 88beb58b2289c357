//! Wire types and endpoints: OpenAI's shapes, SSE, errors as OpenAI clients expect them. Never sees a tensor.

pub mod control;
