//! omni-inferd: large language models on one bare-metal host with unequal GPUs, much RAM and no container.
//!
//! This file is the map. Modules stand in the order in which the data meets them:
//!
//! ```text
//! start:  gguf::File ─▶ model::Model ─▶ plan::Placement ─▶ load::Weights
//! token:  api ChatRequest ─▶ engine::Request ─▶ sched::Batch ─▶ exec::forward ─▶ sample ─▶ engine::Event
//!         ─▶ text::Detokenizer ─▶ SSE
//! ```
//!
//! Two rules keep the house in order: the engine speaks token ids only, and the api never sees a tensor.
//! `tests/tidy.rs` holds the table of who may name whom.

// Ground: knows no model.
pub mod quant; // block formats: layout, scalar decode and encode
pub mod sys; // [unsafe] Linux: memory, affinity, notify, peer credentials, listening descriptors
pub mod transport; // HTTP as every server here has it: version, hop-by-hop header fields
pub mod vault; // what an image of loaded weights says about itself, and how worker and daemon speak of it

// The model as data: pure, no I/O, no clock.
pub mod gguf; // bytes -> header, metadata, tensor directory, split files
pub mod model; // names -> typed fields with strict shapes, one file per architecture
pub mod plan; // model + host -> Placement with bytes, or a refusal with the numbers
pub mod text; // tokenizer, chat template, output parser, incremental detokenizer, stop strings

// Math.
pub mod ops; // the list of operations; reference/ is the specification, cpu/ the fast ones

// Running.
pub mod engine; // one thread owns all model state; bounded channels in and out
pub mod exec; // the forward pass, paged KV cache, scratch buffers
pub mod load; // carries out a plan: file -> memory, each byte read once
pub mod sample; // logits -> token: pure, seeded
pub mod sched; // admission, chunked prefill, batching, prefix reuse: pure and deterministic

// Edges.
pub mod api; // wire types and endpoints; SSE; errors as OpenAI clients expect them
pub mod config; // TOML -> checked Config; the only reader of settings
pub mod ctl; // omnictl's commands
pub mod daemon; // supervisor, router, control API, metrics
pub mod proxy; // TCP -> Unix socket
pub mod worker; // one model's process
