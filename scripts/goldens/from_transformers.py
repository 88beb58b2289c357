#!/usr/bin/env python3
"""Goldens from Hugging Face transformers; see tests/goldens/README.md.

  pip install numpy torch transformers gguf zstandard
  from_transformers.py OUT            writes for llama, qwen2 and qwen3 OUT/NAME.gguf.zst, a small model of random weights,
                                      and OUT/NAME.npy, transformers' logits float32 [72, 160] over OUT/ids.json
  from_transformers.py OUT --check    makes all of it again and compares: weights exactly, logits within 1e-5 of the range

The second referee: it shares no code with llama.cpp. The weights go from transformers' modules to the file by the writer
below, not by llama.cpp's converter, so names, orders of heads and hyperparameters are checked as well.
"""
import json, os, sys, tempfile
import gguf
import numpy as np
import torch
import transformers
import zstandard

VOCAB, TOKENS, CONTEXT = 160, 72, 256
BASE = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
# Each with what is its own: Llama 3's rotary frequencies, Qwen2's biases and tied embeddings, Qwen3's heads wider than
# the model and their norms.
MODELS = {
    "llama": ("Llama", dict(BASE, rms_norm_eps=1e-5, rope_parameters=LLAMA3)),
    "qwen2": ("Qwen2", dict(BASE, rms_norm_eps=1e-6, tie_word_embeddings=True,
                            rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen3": ("Qwen3", dict(BASE, rms_norm_eps=1e-6, head_dim=32, rope_parameters=dict(rope_type="default", rope_theta=1e4))),
}
PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def model(name, number):
    """The module with weights that depend on nothing but numpy's generator."""
    kind, settings = MODELS[name]
    module = getattr(transformers, kind + "ForCausalLM")(getattr(transformers, kind + "Config")(**settings)).float().eval()
    random = np.random.default_rng(number)
    with torch.no_grad():
        for key, parameter in sorted(module.named_parameters()):
            values = torch.from_numpy(random.standard_normal(tuple(parameter.shape), dtype=np.float32))
            values = 1 + 0.1 * values if "norm" in key else (0.2 if key.endswith("bias") else 0.12) * values
            # Few bits of mantissa: the file compresses.
            parameter.copy_(values.bfloat16().float())
    return module


def tensor_name(key):
    stem, kind = key.rsplit(".", 1)
    if stem in ENDS:
        return f"{ENDS[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{PARTS[part]}.{kind}"


def interleaved(weight, heads):
    """Rows of each head from (all firsts, all seconds) of the rotated pairs, as transformers has them, to pair by pair."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write(path, name, module):
    config = module.config
    writer = gguf.GGUFWriter(path, name)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{i}".encode() for i in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges([])
    tensors = {key: value.detach().numpy() for key, value in module.named_parameters()}
    for key, value in sorted(tensors.items()):
        if name == "llama" and ("q_proj" in key or "k_proj" in key):
            value = interleaved(value, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
        writer.add_tensor(tensor_name(key), np.ascontiguousarray(value))
    if name == "llama":
        plain = 1.0 / LLAMA3["rope_theta"] ** (np.arange(0, head, 2) / head)
        writer.add_tensor("rope_freqs.weight", (plain / module.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open(path, "rb").read()


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["--check"]):
        sys.exit(__doc__)
    out, check = sys.argv[1], len(sys.argv) == 3
    ids = np.random.default_rng(0).integers(3, VOCAB, TOKENS).tolist()
    faults = []
    if not check:
        json.dump(ids, open(f"{out}/ids.json", "w"))
    elif json.load(open(f"{out}/ids.json")) != ids:
        faults.append("ids.json differs")
    for number, name in enumerate(MODELS):
        module = model(name, number)
        with torch.no_grad():
            logits = module(torch.tensor([ids])).logits[0].numpy()
        with tempfile.TemporaryDirectory() as folder:
            data = write(f"{folder}/{name}.gguf", name, module)
        if not check:
            open(f"{out}/{name}.gguf.zst", "wb").write(zstandard.compress(data, 19))
            np.save(f"{out}/{name}.npy", logits)
            continue
        if zstandard.decompress(open(f"{out}/{name}.gguf.zst", "rb").read()) != data:
            faults.append(f"{name}.gguf.zst differs")
        golden = np.load(f"{out}/{name}.npy")
        if golden.shape != logits.shape or abs(golden - logits).max() > 1e-5 * np.ptp(golden):
            faults.append(f"{name}.npy differs")
    print("\n".join(faults) or f"{', '.join(MODELS)}: {'all as in' if check else 'written to'} {out}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
