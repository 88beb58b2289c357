//! What can be wrong with a vocabulary or a chat template, with the facts a user needs to act.

/// A vocabulary that cannot be used, or a template that cannot be compiled or rendered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A metadata key the tokenizer cannot do without.
    #[error("the file has no `{key}`: it carries no usable vocabulary; convert the model again with its tokenizer")]
    MissingKey {
        /// Metadata key.
        key: &'static str,
    },
    /// A metadata key of another type than its meaning asks for.
    #[error("`{key}` must be {expected}; the file is damaged or was converted wrongly")]
    WrongType {
        /// Metadata key.
        key: &'static str,
        /// What the key should hold.
        expected: &'static str,
    },
    /// `tokenizer.ggml.model` names an algorithm that is not implemented.
    #[error("tokenizer model `{name}` is not supported; known are: {known}")]
    UnknownModel {
        /// Name in the file.
        name: String,
        /// The supported ones, separated by commas.
        known: String,
    },
    /// `tokenizer.ggml.pre` names a splitting rule that is not implemented; guessing one would tokenize wrongly.
    #[error("pre-tokenizer `{name}` is not supported; known are: {known}")]
    UnknownPreTokenizer {
        /// Name in the file.
        name: String,
        /// The supported ones, separated by commas.
        known: String,
    },
    /// A vocabulary whose parts contradict each other.
    #[error("the vocabulary is unusable: {what}")]
    Vocabulary {
        /// What is wrong, with numbers.
        what: String,
    },
    /// The template does not compile.
    #[error("the chat template does not compile: {message}")]
    TemplateSyntax {
        /// The engine's message with its line.
        message: String,
    },
    /// The template itself refused the conversation by `raise_exception`.
    #[error("the chat template refuses these messages: {message}")]
    TemplateRaised {
        /// The template author's words.
        message: String,
    },
    /// The template failed on this input.
    #[error("the chat template failed on these messages: {message}")]
    TemplateFailed {
        /// The engine's message with its line.
        message: String,
    },
    /// The template used more steps, memory or output than a template may.
    #[error("the chat template exceeds its limit of {limit}; it loops without end or makes text without bound")]
    TemplateLimit {
        /// Which limit, with its number.
        limit: String,
    },
}
