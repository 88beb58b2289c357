//! Logits to token: pure and seeded. The same seed gives the same tokens at any batch size.

/// What a request asks of the sampler; validated at the edge, so every number is finite and in range.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// 0 is greedy (exact argmax, lowest id wins a tie).
    pub temperature: f32,
    /// 0 is off.
    pub top_k: usize,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// Locally typical sampling; 1 is off.
    pub typical_p: f32,
    /// Multiplicative, 1 is off; over the last `penalty_last_n` tokens of prompt and output.
    pub repetition_penalty: f32,
    /// Per occurrence in the output, OpenAI's meaning; 0 is off.
    pub frequency_penalty: f32,
    /// Once per token that occurs in the output, OpenAI's meaning; 0 is off.
    pub presence_penalty: f32,
    /// Tokens the repetition penalty looks back.
    pub penalty_last_n: usize,
    /// Added to the logits; -100 forbids and 100 forces in practice.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of this sequence.
    pub seed: u64,
    /// `Some(n)`: report the chosen token's log-probability and the `n` best.
    pub logprobs: Option<usize>,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_last_n: 64,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// Log-probabilities (natural, of the model's own distribution: before temperature, penalties and cuts).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logprobs {
    /// Of the token itself.
    pub chosen: f32,
    /// The best tokens, descending.
    pub top: Vec<(u32, f32)>,
}
