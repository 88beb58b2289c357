#!/usr/bin/env python3
"""Make fuzz/seeds/gguf/*.gguf: headers of the smallest model of each architecture, from which the fuzzer starts.

    python3 -m venv .venv && .venv/bin/pip install gguf numpy && .venv/bin/python scripts/goldens/gguf_seeds.py
"""
import pathlib

import gguf
import numpy as np

OUT = pathlib.Path(__file__).resolve().parents[2] / "fuzz/seeds/gguf"
D, FF, VOCAB, HEADS, KV_HEADS = 8, 4, 4, 2, 1


def write(architecture):
    w = gguf.GGUFWriter(OUT / f"{architecture}.gguf", architecture)
    w.add_block_count(1)
    w.add_context_length(16)
    w.add_embedding_length(D)
    w.add_feed_forward_length(FF)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(2.0)
    w.add_tokenizer_model("llama")
    w.add_token_list([b"<unk>", b"a", b"b", b"ab"])
    w.add_token_scores([0.0, -1.0, -2.0, -3.0])
    w.add_token_types([2, 1, 1, 1])
    rows, heads = D // HEADS, {"attn_q": HEADS, "attn_k": KV_HEADS, "attn_v": KV_HEADS}
    tensors = {"token_embd.weight": (VOCAB, D), "output_norm.weight": (D,)}
    for name, count in heads.items():
        tensors[f"blk.0.{name}.weight"] = (count * rows, D)
        if architecture == "qwen2":
            tensors[f"blk.0.{name}.bias"] = (count * rows,)
        if architecture == "qwen3" and name != "attn_v":
            tensors[f"blk.0.{name}_norm.weight"] = (rows,)
    tensors |= {"blk.0.attn_norm.weight": (D,), "blk.0.ffn_norm.weight": (D,), "blk.0.attn_output.weight": (D, D)}
    tensors |= {"blk.0.ffn_gate.weight": (FF, D), "blk.0.ffn_up.weight": (FF, D), "blk.0.ffn_down.weight": (D, FF)}
    for name, shape in tensors.items():
        w.add_tensor(name, np.zeros(shape, dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


OUT.mkdir(parents=True, exist_ok=True)
for architecture in ("llama", "qwen2", "qwen3"):
    write(architecture)
