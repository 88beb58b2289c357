//! Metadata to [`Hparams`]: every number checked once, here, so that nobody after it divides by zero or overflows.

use super::{
    Architecture, Error, Gating, HeadOrder, Hparams, LatentDims, Recurrence, Rope, RopeKind, RopeScaling, Routing,
};
use crate::gguf::{File, FromValue, Metadata, Strings};

/// The keys of one architecture.
pub(super) struct Keys<'a> {
    pub(super) metadata: &'a Metadata,
    prefix: &'static str,
    /// Some layer's router has a bias for the choice alone.
    choice_bias: bool,
}

/// `general.architecture`, if this build runs it.
pub(super) fn architecture(metadata: &Metadata) -> Result<Architecture, Error> {
    let name: &str = metadata.require("general.architecture")?;
    Architecture::from_name(name).ok_or_else(|| Error::UnknownArchitecture { found: name.into() })
}

/// Reads and checks a model's numbers.
pub(super) fn read(file: &File, architecture: Architecture) -> Result<Hparams, Error> {
    let choice_bias = file.tensors.iter().any(|tensor| tensor.name.ends_with(".exp_probs_b.bias"));
    let keys = Keys { metadata: &file.metadata, prefix: architecture.name(), choice_bias };
    keys.refuse_unsupported()?;
    let blocks = keys.positive("block_count")?;
    let layers = keys.run_layers(file, blocks)?;
    if layers > file.tensors.len() {
        let problem = format!("the file has only {} tensors", file.tensors.len());
        return Err(keys.bad("block_count", layers, problem));
    }
    let d_model = keys.positive("embedding_length")?;
    let heads = keys.positive("attention.head_count")?;
    let context = keys.positive("context_length")?;
    let latent = architecture.has_latent().then(|| keys.latent(architecture, context)).transpose()?;
    let (kv_heads, key_dim, value_dim) = match &latent {
        Some(latent) => (1, latent.cached(), latent.kv_rank),
        None => keys.cached_heads(d_model, heads)?,
    };
    // Of a head's own query and key.
    let head_dim = latent.map_or(key_dim, |latent| latent.key());
    let routing = keys.routing(architecture)?;
    let rope = keys.rope(architecture, head_dim, context)?;
    let (window, global) = keys.windows(architecture, layers)?;
    let all_routed = routing.as_ref().is_some_and(|routing| routing.dense_layers == 0);
    Ok(Hparams {
        architecture,
        name: file.metadata.get_str("general.name")?.unwrap_or(architecture.name()).to_owned(),
        layers,
        d_model,
        heads,
        kv_heads,
        key_dim,
        value_dim,
        latent,
        d_ff: if all_routed { 0 } else { keys.positive("feed_forward_length")? },
        routing,
        vocab: keys.vocab()?,
        context,
        rms_eps: keys.positive_float("attention.layer_norm_rms_epsilon", None)?,
        window_rope: keys.window_rope(architecture, &rope)?,
        rope,
        // Latent attention has none in any model.
        window: window.filter(|_| latent.is_none()),
        global,
        attention_scale: keys.attention_scale(architecture, [layers, d_model, heads, key_dim])?,
        query_growth: keys.query_growth()?,
        activation: architecture.activation(),
        embedding_scale: architecture.embedding_scale(d_model),
        logit_cap: keys.logit_cap()?,
        recurrence: keys.recurrence(architecture, layers)?,
    })
}

impl<'a> Keys<'a> {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    pub(super) fn get<T: FromValue<'a>>(&self, name: &str) -> Result<Option<T>, Error> {
        Ok(self.metadata.get(&self.key(name))?)
    }

    pub(super) fn bad(&self, name: &str, value: impl ToString, problem: impl Into<String>) -> Error {
        Error::BadValue { key: self.key(name), value: value.to_string(), problem: problem.into() }
    }

    /// Blocks that are run. Those for predicting further tokens stand at the end and are not: `nextn_predict_layers` of
    /// them, or, whatever the key says, from the first on that has a tensor of theirs.
    fn run_layers(&self, file: &File, blocks: usize) -> Result<usize, Error> {
        const FURTHER: &str = "nextn_predict_layers";
        let first = file.tensors.iter().filter_map(|tensor| super::further_block(&tensor.name)).min();
        let further = match first {
            Some(first) => blocks.saturating_sub(first),
            None => self.get::<u32>(FURTHER)?.unwrap_or(0) as usize,
        };
        if further >= blocks {
            return Err(self.bad(FURTHER, further, format!("there are only {blocks} blocks")));
        }
        Ok(blocks - further)
    }

    /// A count from 1 to 2³²-1, `None` where the key is missing. The bound keeps products of two within 64 bits.
    fn optional_positive(&self, name: &str) -> Result<Option<usize>, Error> {
        match self.get::<u32>(name)? {
            Some(0) => Err(self.bad(name, 0, "it must be at least 1")),
            Some(value) => Ok(Some(value as usize)),
            None => Ok(None),
        }
    }

    pub(super) fn positive(&self, name: &str) -> Result<usize, Error> {
        let missing = || crate::gguf::Error::MissingKey { key: self.key(name) };
        self.optional_positive(name)?.ok_or_else(|| missing().into())
    }

    /// A finite number above 0.
    pub(super) fn positive_float(&self, name: &str, default: Option<f32>) -> Result<f32, Error> {
        let value = match (self.get::<f32>(name)?, default) {
            (Some(value), _) | (None, Some(value)) => value,
            (None, None) => self.metadata.require(&self.key(name))?,
        };
        if value.is_finite() && value > 0.0 {
            Ok(value)
        } else {
            Err(self.bad(name, value, "it must be a finite number above 0"))
        }
    }

    /// Key/value heads and the dimensions of their keys and values.
    fn cached_heads(&self, d_model: usize, heads: usize) -> Result<(usize, usize, usize), Error> {
        let kv_heads = self.optional_positive("attention.head_count_kv")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let problem = format!("it must divide the {heads} heads (attention.head_count)");
            return Err(self.bad("attention.head_count_kv", kv_heads, problem));
        }
        let key_dim = self.head_dim("attention.key_length", d_model, heads)?;
        Ok((kv_heads, key_dim, self.head_dim("attention.value_length", d_model, heads)?))
    }

    /// Latent attention. Where the keys' and values' lengths are those of the cache, the heads' have keys of their own.
    fn latent(&self, architecture: Architecture, context: usize) -> Result<LatentDims, Error> {
        // Of whole vectors, as every model of the kind has them.
        let multiple = |name: &str| match self.positive(name)? {
            count if count.is_multiple_of(16) => Ok(count),
            count => Err(self.bad(name, count, "it must be a multiple of 16")),
        };
        let length = |name: &'static str, own: &'static str| match self.get::<u32>(own)? {
            Some(_) => Ok::<_, Error>((own, multiple(own)?)),
            None => Ok((name, multiple(name)?)),
        };
        let (kv_rank, rope) = (multiple("attention.kv_lora_rank")?, multiple("rope.dimension_count")?);
        let (key_name, key) = length("attention.key_length", "attention.key_length_mla")?;
        let (_, value) = length("attention.value_length", "attention.value_length_mla")?;
        if key <= rope {
            let problem = format!("it must be more than the {rope} rotated dimensions (rope.dimension_count)");
            return Err(self.bad(key_name, key, problem));
        }
        let magnitude = match (self.rope_scaling(architecture, context)?, self.yarn_log_multiplier(architecture)?) {
            (RopeScaling::Yarn { factor, .. }, Some(multiplier)) => 1.0 + multiplier * factor.max(1.0).ln(),
            _ => 1.0,
        };
        Ok(LatentDims {
            q_rank: self.get::<u32>("attention.q_lora_rank")?.unwrap_or(0) as usize,
            kv_rank,
            rope,
            nope: key - rope,
            value,
            scale: magnitude * magnitude / (key as f32).sqrt(),
        })
    }

    /// A tenth of DeepSeek's `mscale_all_dim`: YaRN's magnitude then is on the scores, not on what is rotated.
    fn yarn_log_multiplier(&self, architecture: Architecture) -> Result<Option<f32>, Error> {
        const NAME: &str = "rope.scaling.yarn_log_multiplier";
        match self.get::<f32>(NAME)?.filter(|_| architecture.has_latent()) {
            Some(multiplier) if !multiplier.is_finite() || multiplier < 0.0 => {
                Err(self.bad(NAME, multiplier, "it must be a finite number and not below 0"))
            }
            multiplier => Ok(multiplier.filter(|&multiplier| multiplier > 0.0)),
        }
    }

    /// Dimensions of a head: by its key, else the model's width shared out over the heads.
    fn head_dim(&self, name: &str, d_model: usize, heads: usize) -> Result<usize, Error> {
        match self.optional_positive(name)? {
            Some(dim) => Ok(dim),
            None if d_model.is_multiple_of(heads) => Ok(d_model / heads),
            None => {
                let problem = format!("it must divide embedding_length {d_model} where {name} is missing");
                Err(self.bad("attention.head_count", heads, problem))
            }
        }
    }

    /// Tokens of the vocabulary. A file with `tokenizer.ggml.model = "none"` says only how many there are.
    fn vocab(&self) -> Result<usize, Error> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        if let Some("none") = self.metadata.get_str("tokenizer.ggml.model")?
            && self.metadata.find(TOKENS).is_none()
        {
            return self.positive("vocab_size");
        }
        let tokens: &Strings = self.metadata.require(TOKENS)?;
        match tokens.len() {
            0 => Err(Error::BadValue {
                key: TOKENS.into(),
                value: "empty".into(),
                problem: "the vocabulary has no token".into(),
            }),
            // Token ids are u32 everywhere.
            count if u32::try_from(count).is_ok() => Ok(count),
            count => Err(Error::BadValue {
                key: TOKENS.into(),
                value: format!("an array of {count}"),
                problem: "token ids have 32 bits".into(),
            }),
        }
    }

    /// Variants of these architectures whose results would be wrong if their keys were ignored.
    fn refuse_unsupported(&self) -> Result<(), Error> {
        if let Some(false) = self.get::<bool>("attention.causal")? {
            return Err(self.bad(
                "attention.causal",
                false,
                "models that do not predict the next token are not supported",
            ));
        }
        const SCORE_CAP: &str = "attn_logit_softcapping";
        if let Some(cap) = self.get::<f32>(SCORE_CAP)?.filter(|&cap| cap != 0.0) {
            return Err(self.bad(SCORE_CAP, cap, "models that cap the scores of attention are not supported"));
        }
        Ok(())
    }

    /// The routing of an architecture with experts; `None` for a dense model, which may be a llama or not.
    fn routing(&self, architecture: Architecture) -> Result<Option<Routing>, Error> {
        let experts = self.get::<u32>("expert_count")?.unwrap_or(0) as usize;
        match (architecture, experts) {
            (Architecture::Deepseek2 | Architecture::Mistral4 | Architecture::Llama | Architecture::Mistral3, 0) => {
                return Ok(None);
            }
            _ if architecture.is_dense() && experts == 0 => return Ok(None),
            (_, 0) => return Err(self.bad("expert_count", 0, "this architecture needs experts")),
            _ if architecture.is_dense() => {
                return Err(self.bad("expert_count", experts, "this architecture has no experts"));
            }
            _ => {}
        }
        let used = self.positive("expert_used_count")?;
        if used > experts {
            return Err(self.bad("expert_used_count", used, format!("there are only {experts} experts")));
        }
        let (groups, groups_used) = self.expert_groups(experts, used)?;
        let d_ff = match self.optional_positive("expert_feed_forward_length")? {
            Some(d_ff) => d_ff,
            // Mixtral's files have no key of its own for the experts.
            None => self.positive("feed_forward_length")?,
        };
        let shared_d_ff = match self.optional_positive("expert_shared_feed_forward_length")? {
            Some(d_ff) => d_ff,
            None => self.get::<u32>("expert_shared_count")?.unwrap_or(0) as usize * d_ff,
        };
        let scale = match self.get::<f32>("expert_weights_scale")? {
            None | Some(0.0) => 1.0,
            Some(_) => self.positive_float("expert_weights_scale", None)?,
        };
        let gating = self.gating(architecture)?;
        // DeepSeek-V2's weights are as they are, those of its successors' sigmoids are shares of one; gpt-oss's add up to 1.
        let normalise = match architecture {
            _ if architecture.has_latent() => gating == Gating::Sigmoid,
            _ => !matches!(architecture, Architecture::Qwen2Moe | Architecture::GptOss),
        };
        Ok(Some(Routing {
            experts,
            used,
            d_ff,
            shared_d_ff,
            dense_layers: self.get::<u32>("leading_dense_block_count")?.unwrap_or(0) as usize,
            gating,
            normalise: self.get("expert_weights_norm")?.unwrap_or(normalise),
            scale,
            groups,
            groups_used,
        }))
    }

    /// Groups of experts, and from how many of them a token may choose: both 1 where the file has none. Some files say 0
    /// for that.
    fn expert_groups(&self, experts: usize, used: usize) -> Result<(usize, usize), Error> {
        // Far above what any model has; a choice keeps the groups' scores in place.
        const MOST: usize = 64;
        let groups = self.get::<u32>("expert_group_count")?.map_or(1, |groups| groups.max(1) as usize);
        if groups > MOST || !experts.is_multiple_of(groups) {
            let problem = format!("it must divide the {experts} experts (expert_count) and be at most {MOST}");
            return Err(self.bad("expert_group_count", groups, problem));
        }
        let groups_used = match self.get::<u32>("expert_group_used_count")? {
            None | Some(0) => groups,
            Some(groups_used) => groups_used as usize,
        };
        if groups_used > groups || groups_used * (experts / groups) < used {
            let problem = format!("it must leave the {used} experts that are used among {groups} groups of {experts}");
            return Err(self.bad("expert_group_used_count", groups_used, problem));
        }
        Ok((groups, groups_used))
    }

    /// How scores become weights. Files of architectures with sigmoids may do without the key; among DeepSeek's a bias
    /// for the choice tells them (GLM-4.7-Flash).
    fn gating(&self, architecture: Architecture) -> Result<Gating, Error> {
        match self.get::<u32>("expert_gating_func")?.unwrap_or(0) {
            0 if matches!(architecture, Architecture::Glm4Moe | Architecture::MinimaxM2) => Ok(Gating::Sigmoid),
            0 if architecture == Architecture::GptOss => Ok(Gating::SoftmaxOfChosen),
            0 if architecture.has_latent() && self.choice_bias => Ok(Gating::Sigmoid),
            0 | 1 => Ok(Gating::Softmax),
            2 => Ok(Gating::Sigmoid),
            3 => Ok(Gating::SoftmaxOfChosen),
            other => Err(self.bad("expert_gating_func", other, "1 (softmax), 2 (sigmoid) and 3 are supported")),
        }
    }

    /// The recurrent layers of a hybrid architecture; `None` for any other.
    fn recurrence(&self, architecture: Architecture, layers: usize) -> Result<Option<Recurrence>, Error> {
        let order = match architecture {
            Architecture::Qwen3Next => HeadOrder::Grouped,
            Architecture::Qwen35 | Architecture::Qwen35Moe => HeadOrder::Tiled,
            _ => return Ok(None),
        };
        // Far above what any model has, and products of three fit.
        const MOST: usize = 1 << 16;
        let bounded = |name: &str, lowest: usize, most: usize| match self.positive(name)? {
            value if (lowest..=most).contains(&value) => Ok(value),
            value => Err(self.bad(name, value, format!("it must be from {lowest} to {most}"))),
        };
        let kernel = bounded("ssm.conv_kernel", 2, 8)?;
        let (key_heads, value_heads) = (bounded("ssm.group_count", 1, MOST)?, bounded("ssm.time_step_rank", 1, MOST)?);
        if !value_heads.is_multiple_of(key_heads) {
            let problem = format!("it must be a multiple of the {key_heads} key heads (ssm.group_count)");
            return Err(self.bad("ssm.time_step_rank", value_heads, problem));
        }
        // Kernels take a head's dimensions by sixteen.
        let key_dim = bounded("ssm.state_size", 16, MOST)?;
        if !key_dim.is_multiple_of(16) {
            return Err(self.bad("ssm.state_size", key_dim, "it must be a multiple of 16"));
        }
        let inner = self.positive("ssm.inner_size")?;
        let value_dim = inner / value_heads;
        if value_dim * value_heads != inner || !value_dim.is_multiple_of(16) || value_dim > MOST {
            let problem =
                format!("it must be a multiple of 16 for each of the {value_heads} heads (ssm.time_step_rank)");
            return Err(self.bad("ssm.inner_size", inner, problem));
        }
        let attention = self.attention_layers(layers)?;
        Ok(Some(Recurrence { attention, kernel, key_heads, value_heads, key_dim, value_dim, order }))
    }

    /// Which of a hybrid's layers have attention: said one by one, or each n-th.
    fn attention_layers(&self, layers: usize) -> Result<Vec<bool>, Error> {
        const LIST: &str = "attention.recurrent_layers";
        const INTERVAL: &str = "full_attention_interval";
        let (key, value, attention): (_, _, Vec<bool>) = match self.get::<&[bool]>(LIST)? {
            Some(list) => {
                let found = format!("an array of {}", list.len());
                if list.len() < layers {
                    return Err(self.bad(LIST, found, format!("it must say it of all {layers} layers")));
                }
                (LIST, found, list[..layers].iter().map(|&recurrent| !recurrent).collect())
            }
            None => {
                let interval = self.optional_positive(INTERVAL)?.unwrap_or(4);
                (INTERVAL, interval.to_string(), (1..=layers).map(|nth| nth.is_multiple_of(interval)).collect())
            }
        };
        let count = attention.iter().filter(|&&attention| attention).count();
        if count == 0 || count == layers {
            let problem = format!("{count} of {layers} layers have attention then; there must be both kinds");
            return Err(self.bad(key, value, problem));
        }
        Ok(attention)
    }

    fn rope(&self, architecture: Architecture, key_dim: usize, context: usize) -> Result<Rope, Error> {
        let dims = self.optional_positive("rope.dimension_count")?.unwrap_or(key_dim);
        if dims > key_dim || !dims.is_multiple_of(2) {
            let problem = format!("it must be even and at most the {key_dim} dimensions of a head");
            return Err(self.bad("rope.dimension_count", dims, problem));
        }
        Ok(Rope {
            kind: match architecture {
                Architecture::Llama | Architecture::Mistral3 => RopeKind::Norm,
                _ if architecture.has_latent() => RopeKind::Norm,
                _ => RopeKind::Neox,
            },
            dims,
            base: self.positive_float("rope.freq_base", Some(10_000.0))?,
            scaling: self.rope_scaling(architecture, context)?,
        })
    }

    fn rope_scaling(&self, architecture: Architecture, context: usize) -> Result<RopeScaling, Error> {
        // Files older than `rope.scaling.*` have `rope.scale_linear`; 0 means "no scaling" in both.
        let name = match self.get::<f32>("rope.scaling.factor")? {
            Some(_) => "rope.scaling.factor",
            None => "rope.scale_linear",
        };
        let factor = match self.get::<f32>(name)? {
            None | Some(0.0) => 1.0,
            Some(_) => self.positive_float(name, None)?,
        };
        match self.get::<&str>("rope.scaling.type")?.unwrap_or("linear") {
            // Phi-3's files leave the type out and have the factors.
            "longrope" | "linear" | "none" if architecture == Architecture::Phi3 && factor == 1.0 => {
                self.long_rope(context)
            }
            "none" => Ok(RopeScaling::None),
            "linear" if factor == 1.0 => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor }),
            "yarn" => self.yarn(architecture, factor, context),
            other => Err(self.bad("rope.scaling.type", other, "none, linear and yarn are supported")),
        }
    }

    fn original_context(&self, context: usize) -> Result<u32, Error> {
        // The cast is exact: counts are read as u32.
        Ok(self.optional_positive("rope.scaling.original_context_length")?.unwrap_or(context) as u32)
    }

    fn long_rope(&self, context: usize) -> Result<RopeScaling, Error> {
        let attention = self.positive_float("rope.scaling.attn_factor", Some(1.0))?;
        Ok(RopeScaling::LongRope { original_context: self.original_context(context)?, attention })
    }

    fn yarn(&self, architecture: Architecture, factor: f32, context: usize) -> Result<RopeScaling, Error> {
        const LOG: &str = "rope.scaling.yarn_log_multiplier";
        // OpenAI's models are trained with a ramp between fractions of pairs (`truncate: false`), for which files have no
        // key: they are known by what their context was. llama.cpp takes whole pairs for them, too, and is off by that.
        const OPENAI_CONTEXT: u32 = 4096;
        if factor < 1.0 {
            return Err(self.bad("rope.scaling.factor", factor, "YaRN makes contexts longer: it must be at least 1"));
        }
        let original_context = self.original_context(context)?;
        let mut attention = self.positive_float("rope.scaling.attn_factor", Some(1.0))?
            * self.positive_float("rope.scaling.yarn_attn_factor", Some(1.0))?;
        // The magnitude's second form, `(0.1 ln(s) + 1) / (0.1 · multiplier · ln(s) + 1)`.
        if !architecture.has_latent() && self.get::<f32>(LOG)?.is_some_and(|log| log != 0.0) {
            attention /= 0.1 * self.positive_float(LOG, None)? * factor.ln().max(0.0) + 1.0;
        }
        let extrapolation = self.get::<f32>("rope.scaling.yarn_ext_factor")?.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&extrapolation) {
            return Err(self.bad("rope.scaling.yarn_ext_factor", extrapolation, "it must be from 0 to 1"));
        }
        // What the rotation is to be multiplied by besides is divided out.
        let attention = match self.yarn_log_multiplier(architecture)? {
            Some(_) if extrapolation > 0.0 => attention / (0.1 * factor.ln() + 1.0),
            _ => attention,
        };
        if !(attention.is_finite() && attention > 0.0) {
            return Err(self.bad(LOG, attention, "the magnitude of the rotation must be a finite number above 0"));
        }
        Ok(RopeScaling::Yarn {
            factor,
            original_context,
            extrapolation,
            attention,
            beta_fast: self.positive_float("rope.scaling.yarn_beta_fast", Some(32.0))?,
            beta_slow: self.positive_float("rope.scaling.yarn_beta_slow", Some(1.0))?,
            whole_pairs: architecture != Architecture::GptOss || original_context != OPENAI_CONTEXT,
        })
    }
}
