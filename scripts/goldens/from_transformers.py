#!/usr/bin/env python3
"""Goldens from Hugging Face transformers; see tests/goldens/README.md.

  pip install numpy torch transformers gguf zstandard
  from_transformers.py OUT            writes for each of ALL OUT/NAME.gguf.zst, a small model of random weights, and
                                      OUT/NAME.npy, transformers' logits float32 [72, 160] over OUT/ids.json
                                      (OUT/phi3-short.npy: over its first 32, phi3's original context);
                                      for those with recurrent layers 8 rows more, of the prompt of 600 tokens in OUT/long.json;
                                      OUT/sizes.json: weights counted in the modules, bytes of cache and state
  from_transformers.py OUT --check    makes all of it again and compares: weights exactly, logits within 1e-5 of the range

The second referee: it shares no code with llama.cpp. The weights go from transformers' modules to the file by the writer
below, not by llama.cpp's converter, so names, orders of heads and hyperparameters are checked as well.
"""
import json, math, os, sys, tempfile
import gguf
import numpy as np
import torch
import transformers
import zstandard

VOCAB, TOKENS, CONTEXT = 160, 72, 256
SHORT = 32  # phi3's original context
BASE = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0)
PLAIN = dict(rope_type="default", rope_theta=1e4)
EXPERTS = dict(num_experts_per_tok=3, moe_intermediate_size=48)
LATENT = dict(BASE, **EXPERTS, num_key_value_heads=4, rms_norm_eps=1e-6, n_routed_experts=8, n_shared_experts=2, kv_lora_rank=48,
              qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=16, first_k_dense_replace=1)


def yarn(mscale):
    return dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=CONTEXT // 4, beta_fast=32,
                beta_slow=1, mscale=mscale, mscale_all_dim=mscale)


# Each with what is its own: Llama 3's rotary frequencies, Qwen2's biases and tied embeddings, Qwen3's heads wider than
# the model and their norms, Qwen2-MoE's unnormalised weights and gated shared expert, GLM-4.5's leading dense layer, partial
# rotation, sigmoids with a bias for the choice, and scale, MiniMax-M2's norms over all heads together, gpt-oss's sinks,
# alternating windows, biases of experts and clamped activation, Gemma 3's norms, windows, two rotations and cap, Phi-3's
# fused matrices and two sets of rotary factors, Ministral 3's queries that grow (all windows are shorter than the
# sequence); below DeepSeek-V2's latent attention with queries made at once, the matrix to keys and values whole, YaRN and groups by their best expert, V3's with
# compressed queries, that matrix cut, sigmoids and groups by their best two, GLM-4.7-Flash's without YaRN, groups and a word
# on how scores become weights, Mistral 4's with queries that grow and an expert's gate and up in one tensor.
MODELS = {
    "llama": ("Llama", dict(BASE, rms_norm_eps=1e-5, rope_parameters=LLAMA3)),
    "qwen2": ("Qwen2", dict(BASE, rms_norm_eps=1e-6, tie_word_embeddings=True,
                            rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen3": ("Qwen3", dict(BASE, rms_norm_eps=1e-6, head_dim=32, rope_parameters=PLAIN)),
    "mixtral": ("Mixtral", dict(BASE, rms_norm_eps=1e-5, num_local_experts=4, num_experts_per_tok=2, rope_parameters=PLAIN)),
    "qwen2moe": ("Qwen2Moe", dict(BASE, **EXPERTS, rms_norm_eps=1e-6, num_experts=8, shared_expert_intermediate_size=80,
                                  rope_parameters=PLAIN)),
    "qwen3moe": ("Qwen3Moe", dict(BASE, **EXPERTS, rms_norm_eps=1e-6, num_experts=8, norm_topk_prob=True, head_dim=32,
                                  rope_parameters=PLAIN)),
    "glm4moe": ("Glm4Moe", dict(BASE, **EXPERTS, rms_norm_eps=1e-5, n_routed_experts=8, num_hidden_layers=3, head_dim=32,
                                n_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=1.5, norm_topk_prob=True,
                                n_group=1, topk_group=1, use_qk_norm=True, attention_bias=True,
                                rope_parameters=dict(PLAIN, partial_rotary_factor=0.5))),
    "minimax-m2": ("MiniMaxM2", dict(BASE, rms_norm_eps=1e-6, num_local_experts=8, num_experts_per_tok=3, head_dim=32,
                                     rope_parameters=dict(PLAIN, partial_rotary_factor=0.5))),
    "gpt-oss": ("GptOss", dict(BASE, rms_norm_eps=1e-5, num_hidden_layers=4, head_dim=32, intermediate_size=48, num_local_experts=8,
                               num_experts_per_tok=3, sliding_window=16,
                               # As OpenAI's, but that the pairs of YaRN's ramp turn within the sequence.
                               rope_parameters=dict(YARN, rope_theta=5e2, factor=32.0, truncate=False,
                                                    original_max_position_embeddings=4096))),
    "gemma3": ("Gemma3", dict(BASE, rms_norm_eps=1e-6, num_hidden_layers=7, head_dim=32, query_pre_attn_scalar=32, sliding_window=16,
                              final_logit_softcapping=3.0,
                              rope_parameters=dict(sliding_attention=PLAIN, full_attention=dict(
                                  rope_type="linear", rope_theta=1e6, factor=8.0)))),
    "phi3": ("Phi3", dict(BASE, rms_norm_eps=1e-5, sliding_window=24, original_max_position_embeddings=SHORT, rope_parameters=dict(
        rope_type="longrope", rope_theta=1e4, partial_rotary_factor=0.75, original_max_position_embeddings=SHORT,
        short_factor=[1.0, 1.0, 1.05, 1.1, 1.3, 1.5], long_factor=[1.0, 1.2, 1.9, 3.5, 6.0, 8.0]))),
    "mistral3": ("Ministral3", dict(BASE, rms_norm_eps=1e-5, head_dim=32, rope_parameters=dict(
        YARN, rope_theta=1e6, factor=16.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0,
        llama_4_scaling_beta=0.1))),
}
# With latent attention. Their seeds count from 8.
LATENTS = {
    "deepseek-v2": ("DeepseekV2", dict(LATENT, q_lora_rank=None, routed_scaling_factor=1.5, topk_method="group_limited_greedy",
                                       n_group=4, topk_group=2, rope_parameters=yarn(0.707))),
    "deepseek-v3": ("DeepseekV3", dict(LATENT, q_lora_rank=40, routed_scaling_factor=2.5, norm_topk_prob=True, n_group=4,
                                       topk_group=2, rope_parameters=yarn(1.0))),
    "glm-4.7-flash": ("Glm4MoeLite", dict(LATENT, q_lora_rank=40, routed_scaling_factor=1.8, norm_topk_prob=True, n_group=1,
                                          topk_group=1, n_shared_experts=1, rope_parameters=PLAIN)),
    "mistral4": ("Mistral4", dict(LATENT, q_lora_rank=40, norm_topk_prob=True, n_shared_experts=1, first_k_dense_replace=0,
                                  rope_parameters=dict(yarn(1.0), factor=16.0, original_max_position_embeddings=16,
                                                       llama_4_scaling_beta=0.1))),
}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}
ARCHITECTURES = {"mixtral": "llama", **dict.fromkeys(LATENTS, "deepseek2"), "mistral4": "mistral4"}
# With recurrent layers: gated delta net beside gated attention, norms around zero. Each another way to say which layers have
# attention (both, an interval, a list), heads of q and k of another width than those of v, more of v than of k. Their seeds
# count from 100.
DELTA = dict(BASE, num_hidden_layers=4, max_position_embeddings=1024, rms_norm_eps=1e-6, head_dim=32,
             rope_parameters=dict(PLAIN, partial_rotary_factor=0.25), linear_conv_kernel_dim=4, linear_num_key_heads=2,
             linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=32)
SHARED = dict(EXPERTS, num_experts=8, shared_expert_intermediate_size=80)
TURNS = ["linear_attention", "full_attention"]
EVEN = dict(num_hidden_layers=2, layer_types=TURNS, linear_value_head_dim=16)
HYBRIDS = {
    "qwen3next": ("Qwen3Next", dict(DELTA, **SHARED, norm_topk_prob=True, layer_types=TURNS[:1] * 3 + TURNS[1:])),
    "qwen35": ("Qwen3_5", dict(DELTA, layer_types=TURNS * 2)),
    "qwen35moe": ("Qwen3_5Moe", dict(DELTA, **SHARED, layer_types=[TURNS[0], *TURNS, TURNS[0]], linear_num_value_heads=6)),
    # With heads of q, k and v alike, which llama.cpp takes.
    "qwen35-even": ("Qwen3_5", dict(DELTA, **EVEN)),
    "qwen35moe-even": ("Qwen3_5Moe", dict(DELTA, **SHARED | EVEN | dict(num_experts=4))),
}
ARCHITECTURES |= {name: name.removesuffix("-even") for name in HYBRIDS}
ALL = MODELS | LATENTS | HYBRIDS
# Rows of a long prompt that are kept.
LONG, LONG_ROWS = 600, [0, 63, 64, 127, 300, 511, 512, 599]
PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "self_attn.sinks": "attn_sinks", "mlp.router": "ffn_gate_inp", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.in_proj_b": "ssm_beta", "linear_attn.in_proj_a": "ssm_alpha", "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm", "linear_attn.out_proj": "ssm_out",
    "self_attn.kv_b_proj": "attn_kv_b", "mlp.gate": "ffn_gate_inp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    **{f"mlp.shared_expert{s}.{part}_proj": f"ffn_{part}_shexp" for s in ("", "s") for part in ("gate", "up", "down")},
}
# These files call the norm what transformers calls it: the one before the feed-forward, Gemma's after the attention.
OTHER = {(name, "post_attention_layernorm"): "post_attention_norm" for name in ("glm4moe", "gpt-oss", "gemma3", *HYBRIDS)}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def weights(module):
    """All that a file holds, by transformers' names; the bias for the choice of experts is a buffer there."""
    biases = [item for item in module.named_buffers() if item[0].endswith("e_score_correction_bias")]
    return sorted([*module.named_parameters(), *biases])


def model(name, number):
    """The module with weights that depend on nothing but numpy's generator."""
    kind, settings = ALL[name]
    config = getattr(transformers, CONFIGS.get(kind, kind + ("TextConfig" if "_" in kind else "Config")))(**settings)
    module = getattr(transformers, kind + "ForCausalLM")(config).float().eval()
    random = np.random.default_rng(number)
    with torch.no_grad():
        for key, parameter in weights(module):
            values = torch.from_numpy(random.standard_normal(tuple(parameter.shape), dtype=np.float32))
            # Gemma's norms add one themselves, as those of models with recurrent layers do but for one of them.
            centred = name == "gemma3" or name in HYBRIDS and not key.endswith("linear_attn.norm.weight")
            values = (not centred) + 0.1 * values if "norm" in key else (0.2 if key.endswith("bias") else 0.12) * values
            if key.endswith(("sinks", "gate_up_proj")) and name == "gpt-oss":
                values *= 5  # sinks of the scores' size, activations beyond what they are clamped to
            if key.endswith("A_log"):
                values = 10 * values - 2  # from long memory to short
            if key.endswith(("mlp.gate.weight", "mlp.router.weight")):
                values *= 4  # decided choices: nearly equal scores would fall out differently by rounding
            # Few bits of mantissa: the file compresses.
            parameter.copy_(values.bfloat16().float())
    return module


def tensor_name(name, key):
    if key.endswith("linear_attn.A_log"):
        return f"blk.{key.split('.')[2]}.ssm_a"
    if key.endswith("linear_attn.dt_bias"):
        return f"blk.{key.split('.')[2]}.ssm_dt.bias"
    stem, kind = key.rsplit(".", 1) if not key.endswith("sinks") else (key, "weight")
    if stem in ENDS:
        return f"{ENDS[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{OTHER.get((name, part)) or PARTS[part]}.{kind}"


def tensors(name, module):
    """Names in the file and values; stacks of experts and what is not stored under a plain name on top."""
    config = module.config
    for key, value in weights(module):
        value, layer = value.detach().numpy(), "".join(key.split(".")[2:3])
        if name in ("llama", "mixtral", "mistral3") and ("q_proj" in key or "k_proj" in key):
            value = interleaved(value, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
        if name in HYBRIDS:
            key, value = hybrid(name, config, key, value)
        if name == "gemma3" and "norm" in key:
            value = value + 1
        if name == "gpt-oss" and ".experts." in key:
            # Gate and up take turns, and matrices are stored by columns.
            part, kind = key.rsplit(".", 1)[-1].removesuffix("_bias"), "bias" if key.endswith("bias") else "weight"
            value = value if kind == "bias" else value.swapaxes(1, 2)
            halves = [("gate", value[:, ::2]), ("up", value[:, 1::2])] if part == "gate_up_proj" else [("down", value)]
            for part, half in halves:
                yield f"blk.{layer}.ffn_{part}_exps.{kind}", half
        elif key.endswith("kv_b_proj.weight") and name != "deepseek-v2":
            keys, values = np.split(value.reshape(config.num_attention_heads, -1, value.shape[-1]), [config.qk_nope_head_dim], 1)
            yield f"blk.{layer}.attn_k_b.weight", keys.swapaxes(1, 2)
            yield f"blk.{layer}.attn_v_b.weight", values
        elif key.endswith("in_proj_qkvz.weight"):
            qkv, gate = ungrouped(config, value)
            yield f"blk.{layer}.attn_qkv.weight", qkv
            yield f"blk.{layer}.attn_gate.weight", gate
        elif key.endswith("experts.gate_up_proj") and name == "mistral4":
            yield f"blk.{layer}.ffn_gate_up_exps.weight", value
        elif key.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), np.split(value, 2, axis=1)):
                yield f"blk.{layer}.ffn_{part}_exps.weight", half
        elif key.endswith("experts.down_proj"):
            yield f"blk.{layer}.ffn_down_exps.weight", value
        elif key.endswith("e_score_correction_bias"):
            yield f"blk.{layer}.exp_probs_b.bias", value
        else:
            yield tensor_name(name, key), value


def hybrid(name, config, key, value):
    """As files have it: norms around one, the decay's rate itself, heads of v in the order of their file."""
    part = key.split("linear_attn.")[-1]
    if key.endswith("norm.weight") and part != "norm.weight":
        value = value + 1
    if part == "A_log":
        value = -np.exp(value)
    if part == "conv1d.weight":
        value = value.squeeze(1)
    if name == "qwen3next":
        return key, value
    heads, rows = config.linear_num_value_heads, 2 * config.linear_num_key_heads * config.linear_key_head_dim
    tile = lambda v: v.reshape(config.linear_num_key_heads, -1, len(v) // heads, *v.shape[1:]).swapaxes(0, 1).reshape(v.shape)
    if part in ("in_proj_z.weight", "in_proj_b.weight", "in_proj_a.weight", "A_log", "dt_bias"):
        value = tile(value)
    if part in ("in_proj_qkv.weight", "conv1d.weight"):
        value = np.concatenate([value[:rows], tile(value[rows:])])
    if part == "out_proj.weight":
        value = tile(value.T).T
    return key, value


def ungrouped(config, value):
    """Rows of the input projection from key head by key head (q, k, v, gate) to all q, all k, all v, and all gates."""
    heads, dim = config.linear_num_key_heads, config.linear_key_head_dim
    wide = config.linear_num_value_heads // heads * config.linear_value_head_dim
    parts = np.split(value.reshape(heads, -1, value.shape[-1]), np.cumsum([dim, dim, wide]), axis=1)
    q, k, v, gate = (part.reshape(-1, value.shape[-1]) for part in parts)
    return np.concatenate([q, k, v]), gate


def write_recurrence(writer, name, config):
    """Keys of a model with recurrent layers."""
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_num_value_heads * config.linear_value_head_dim)
    if name != "qwen35":
        recurrent = [kind == TURNS[0] for kind in config.layer_types]
        writer.add_array(f"{name}.attention.recurrent_layers", recurrent)
    if name != "qwen35moe":
        writer.add_uint32(f"{name}.full_attention_interval", config.layer_types.index(TURNS[1]) + 1)
    if name != "qwen3next":
        writer.add_array(f"{name}.rope.dimension_sections", [2, 1, 1, 0])


def write_routing(writer, name, config):
    """Keys of a model with experts."""
    get = lambda *keys: next((getattr(config, key) for key in keys if getattr(config, key, None) is not None), None)
    writer.add_expert_count(get("num_experts", "num_local_experts", "n_routed_experts"))
    writer.add_expert_used_count(config.num_experts_per_tok)
    if name not in ("mixtral", "minimax-m2", "gpt-oss"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if name in ("minimax-m2", "gpt-oss"):
        writer.add_expert_feed_forward_length(config.intermediate_size)
    if name == "qwen2moe" or name in HYBRIDS:
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if name in ("glm4moe", *LATENTS):
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_weights_norm(bool(config.norm_topk_prob))
    if name in ("deepseek-v2", "deepseek-v3"):
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
    if name in ("glm4moe", "minimax-m2", "deepseek-v3"):
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def write_positions(writer, name, config):
    """Keys and tensors of windows and rotation; a model with two rotations has the one without a window in the plain keys."""
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if name in ("gpt-oss", "gemma3", "phi3"):
        writer.add_sliding_window(config.sliding_window)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if name == "mistral3":
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if name == "gemma3":
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if name == "phi3":
        growth = math.log(CONTEXT / SHORT) / math.log(SHORT)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + growth))
        for length in ("long", "short"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], np.float32))
def write_latent(writer, name, config):
    """Keys of latent attention: of the heads where a file has the whole matrix, of what is cached where it is cut."""
    rank, rope, key = config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim + config.qk_rope_head_dim
    whole = name == "deepseek-v2"
    writer.add_head_count_kv(config.num_attention_heads if whole else 1)
    writer.add_key_length(key if whole else rank + rope)
    writer.add_value_length(config.v_head_dim if whole else rank)
    if not whole:
        writer.add_key_length_mla(key)
        writer.add_value_length_mla(config.v_head_dim)
    writer.add_kv_lora_rank(rank)
    if config.q_lora_rank:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_rope_dimension_count(rope)
    if config.rope_parameters["rope_type"] == "yarn":
        writer.add_rope_scaling_yarn_log_mul(0.1 * config.rope_parameters["mscale_all_dim"])
    if name == "mistral4":
        writer.add_attn_temperature_scale(config.rope_parameters["llama_4_scaling_beta"])
        writer.add_attn_temperature_length(config.rope_parameters["original_max_position_embeddings"])


def interleaved(weight, heads):
    """Rows of each head from (all firsts, all seconds) of the rotated pairs, as transformers has them, to pair by pair."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write(path, name, module):
    config = module.config
    writer = gguf.GGUFWriter(path, ARCHITECTURES.get(name, name))
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", BASE["intermediate_size"]))
    writer.add_head_count(config.num_attention_heads)
    if hasattr(config, "kv_lora_rank"):
        write_latent(writer, name, config)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_rope_dimension_count(int(head * config.rope_parameters.get("partial_rotary_factor", 1)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    write_positions(writer, name, config)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{i}".encode() for i in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges([])
    if name in HYBRIDS:
        write_recurrence(writer, ARCHITECTURES[name], config)
    if hasattr(config, "num_experts_per_tok"):
        write_routing(writer, name, config)
    for key, value in tensors(name, module):
        writer.add_tensor(key, np.ascontiguousarray(value))
    if name == "llama":
        plain = 1.0 / LLAMA3["rope_theta"] ** (np.arange(0, head, 2) / head)
        writer.add_tensor("rope_freqs.weight", (plain / module.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open(path, "rb").read()


def sizes(module):
    """What a file of it must be reported to hold, and to need: weights as the module has them, in all and of one token; bytes of
    an F16 cache per token and of an F32 state per sequence, by the configuration."""
    config = module.config
    get = lambda *keys: next((getattr(config, key) for key in keys if getattr(config, key, None) is not None), None)
    experts, used = get("num_experts", "num_local_experts", "n_routed_experts"), get("num_experts_per_tok")
    count = lambda wanted: sum(value.numel() for key, value in weights(module) if wanted(key))
    routed = count(lambda key: ".experts." in key)
    kinds = get("layer_types") or []
    recurrent = kinds.count(TURNS[0])
    layers = config.num_hidden_layers - recurrent
    head = get("head_dim") or config.hidden_size // config.num_attention_heads
    cached = config.num_key_value_heads * 2 * head
    if get("kv_lora_rank"):
        cached = config.kv_lora_rank + config.qk_rope_head_dim
    out = {"parameters": count(lambda key: True), "kv_bytes_per_token": 2 * layers * cached}
    out["active"] = out["parameters"] - (routed * (experts - used) // experts if routed else 0)
    if routed:
        out |= {"experts": experts, "experts_used": used}
    if recurrent:
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        values = config.linear_num_value_heads * config.linear_value_head_dim
        convolution = (config.linear_conv_kernel_dim - 1) * (2 * keys + values)
        out["state_bytes"] = 4 * recurrent * (convolution + values * config.linear_key_head_dim)
    return out


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["--check"]):
        sys.exit(__doc__)
    out, check = sys.argv[1], len(sys.argv) == 3
    ids = np.random.default_rng(0).integers(3, VOCAB, TOKENS).tolist()
    long_ids = np.random.default_rng(1).integers(3, VOCAB, LONG).tolist()
    faults, counted = [], {}
    if not check:
        json.dump(ids, open(f"{out}/ids.json", "w"))
        json.dump({"ids": long_ids, "rows": LONG_ROWS}, open(f"{out}/long.json", "w"))
    elif json.load(open(f"{out}/ids.json")) != ids or json.load(open(f"{out}/long.json"))["ids"] != long_ids:
        faults.append("ids.json or long.json differs")
    for number, name in [*enumerate(MODELS), *enumerate(LATENTS, 8), *enumerate(HYBRIDS, 100)]:
        module = model(name, number)
        counted[name] = sizes(module)
        with torch.no_grad():
            found = {name: module(torch.tensor([ids])).logits[0].numpy()}
            if name == "phi3":
                found["phi3-short"] = module(torch.tensor([ids[:SHORT]])).logits[0].numpy()
            if name in HYBRIDS:
                long = module(torch.tensor([long_ids])).logits[0, LONG_ROWS].numpy()
                found[name] = np.concatenate([found[name], long])
        with tempfile.TemporaryDirectory() as folder:
            data = write(f"{folder}/{name}.gguf", name, module)
        if not check:
            open(f"{out}/{name}.gguf.zst", "wb").write(zstandard.compress(data, 19))
            for key, logits in found.items():
                np.save(f"{out}/{key}.npy", logits)
            continue
        if zstandard.decompress(open(f"{out}/{name}.gguf.zst", "rb").read()) != data:
            faults.append(f"{name}.gguf.zst differs")
        for key, logits in found.items():
            golden = np.load(f"{out}/{key}.npy")
            if golden.shape != logits.shape or abs(golden - logits).max() > 1e-5 * np.ptp(golden):
                faults.append(f"{key}.npy differs")
    if not check:
        json.dump(counted, open(f"{out}/sizes.json", "w"), indent=1)
    elif json.load(open(f"{out}/sizes.json")) != counted:
        faults.append("sizes.json differs")
    print("\n".join(faults) or f"{', '.join(ALL)}: {'all as in' if check else 'written to'} {out}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
