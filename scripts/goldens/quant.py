#!/usr/bin/env python3
"""Make tests/data/quant/*.bin: random and extreme blocks of each format with the values ggml's reference gives.

    python3 -m venv .venv && .venv/bin/pip install gguf numpy && .venv/bin/python scripts/goldens/quant.py

decode-<TYPE>.bin   u32 blocks, then the blocks, then their F32 values (PyPI gguf's dequantize)
encode-<TYPE>.bin   u32 blocks, then F32 values, then the blocks (PyPI gguf's quantize), for formats whose encoding is
                    a fixed rule; the K-quants' and IQ4's encoders search and are held to an error bound in the
                    tests instead
All little-endian. Q8_K, which the package does not decode, is worked out here from its layout.
"""
import pathlib
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/data/quant"
# Where the F16 scales lie in a block of each format.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
# The later types; IQ1_M's factor lies in the top nibbles of its last four words, the FP4 types have none.
LATER = {
    T.IQ1_S: 0, T.IQ1_M: None, T.IQ2_XXS: 0, T.IQ2_XS: 0, T.IQ2_S: 0, T.IQ3_XXS: 0, T.IQ3_S: 0, T.IQ4_NL: 0, T.IQ4_XS: 0,
    T.TQ1_0: 52, T.TQ2_0: 64, T.MXFP4: None, T.NVFP4: None,
}
# Zero, negative zero, smallest and largest subnormal, smallest normal, one, largest, negative.
EXTREME = np.array([0x0000, 0x8000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0xC123], dtype=np.uint16)


def finite_f16(rng, count):
    """Random bits with every exponent but the one of infinities and NaN."""
    bits = rng.integers(0, 1 << 16, size=count, dtype=np.uint16)
    return np.where(bits & 0x7C00 == 0x7C00, bits & 0xBFFF, bits).astype(np.uint16)


def blocks_of(kind, rng):
    """Sixteen blocks: random bits, then each extreme scale in turn, all-zero and all-one quants among them."""
    length, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, size=(16, size), dtype=np.uint8)
    blocks[14], blocks[15] = 0, 255
    for at in SCALES[kind]:
        scale = np.concatenate([finite_f16(rng, 6), rng.permutation(EXTREME), finite_f16(rng, 2)])
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(16, 2)
    return blocks


def later_blocks_of(kind, rng):
    """Eight blocks: random bits, four with an extreme factor, the last all ones but for it. FP4: every scale byte."""
    length, size = gguf.GGML_QUANT_SIZES[kind]
    if kind in (T.MXFP4, T.NVFP4):
        scales = 1 if kind == T.MXFP4 else 4
        blocks = rng.integers(0, 256, size=(256 // scales, size), dtype=np.uint8)
        blocks[:, :scales] = rng.permutation(256).reshape(-1, scales)
        return blocks
    blocks = rng.integers(0, 256, size=(8, size), dtype=np.uint8)
    blocks[7] = 255
    factor = np.concatenate([finite_f16(rng, 3), EXTREME[[1, 2, 6, 7]], finite_f16(rng, 1)])
    if kind == T.IQ1_M:
        words = blocks[:, 48:].copy().view(np.uint16) & 0x0FFF
        nibbles = factor.reshape(8, 1) >> np.array([0, 4, 8, 12], dtype=np.uint16) & 15
        blocks[:, 48:] = (words | nibbles << 12).astype(np.uint16).view(np.uint8)
    else:
        blocks[:, LATER[kind] : LATER[kind] + 2] = factor.view(np.uint8).reshape(8, 2)
    return blocks


def write(name, count, *parts):
    data = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
    (OUT / f"{name}.bin").write_bytes(struct.pack("<I", count) + data)


def q8_k(rng):
    scale = np.array([0.0, -0.0, 1e-45, 1.1754944e-38, 3.4e36, -2.5, 0.1, 1.0], dtype=np.float32)
    quants = rng.integers(-128, 128, size=(8, 256), dtype=np.int8)
    sums = quants.reshape(8, 16, 16).astype(np.int16).sum(axis=2, dtype=np.int16)
    blocks = np.concatenate([scale.view(np.uint8).reshape(8, 4), quants.view(np.uint8), sums.view(np.uint8).reshape(8, 32)], axis=1)
    return blocks, scale[:, None] * quants.astype(np.float32)


def values(rng, length):
    """Rows to encode: normal, tiny, one-sided, constant, zero and with a single outlier."""
    x = rng.standard_normal((12, length)).astype(np.float32)
    x[1] *= 1e-6
    x[2] = np.abs(x[2])
    x[3] = -np.abs(x[3])
    x[4] = 0.75
    x[5] = 0.0
    x[6] *= 0.01
    x[6, 7] = 100.0
    x[7] *= 3e4
    return x


def main():
    rng = np.random.default_rng(20260101)
    OUT.mkdir(parents=True, exist_ok=True)
    with np.errstate(all="ignore"):
        for kind in SCALES:
            blocks = blocks_of(kind, rng)
            write(f"decode-{kind.name}", len(blocks), blocks, gguf.quants.dequantize(blocks, kind).astype("<f4"))
        blocks, decoded = q8_k(rng)
        write("decode-Q8_K", len(blocks), blocks, decoded.astype("<f4"))
        halves = np.concatenate([EXTREME, finite_f16(rng, 56)])
        write("decode-F16", len(halves), halves, halves.view(np.float16).astype("<f4"))
        write("decode-BF16", len(halves), halves, gguf.quants.dequantize(halves.view(np.uint8), T.BF16).astype("<f4"))
        for kind in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.BF16, T.F16):
            length = gguf.GGML_QUANT_SIZES[kind][0]
            x = values(rng, length if length > 1 else 32)
            write(f"encode-{kind.name}", x.size // length, x, gguf.quants.quantize(x, kind))
        rng = np.random.default_rng(20260102)
        for kind in LATER:
            blocks = later_blocks_of(kind, rng)
            write(f"decode-{kind.name}", len(blocks), blocks, gguf.quants.dequantize(blocks, kind).astype("<f4"))
        for kind in (T.TQ1_0, T.TQ2_0, T.MXFP4):
            length = gguf.GGML_QUANT_SIZES[kind][0]
            x = values(rng, length)[:: 1 if length == 32 else 2]
            write(f"encode-{kind.name}", x.size // length, x, gguf.quants.quantize(x, kind))


main()
