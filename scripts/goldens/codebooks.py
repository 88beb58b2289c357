#!/usr/bin/env python3
"""Make src/quant/codebooks.bin: the codebooks of the IQ types, packed as PyPI gguf carries them.

    python3 -m venv .venv && .venv/bin/pip install gguf numpy && .venv/bin/python scripts/goldens/codebooks.py

IQ2_XXS [256][8], IQ2_XS [512][8], IQ2_S [1024][8] of 2 bits, IQ3_XXS [256][4], IQ3_S [512][4] of 4 bits, IQ1 [2048][8] of 2
bits, one after the other, lowest bits first. Prints the SHA-256 of each codebook decoded to bytes by the package (IQ1's
with 1 added), which src/quant/codebook.rs checks.
"""
import hashlib
import pathlib

import numpy as np
from gguf import quants

OUT = pathlib.Path(__file__).resolve().parents[2] / "src/quant/codebooks.bin"
KINDS = (quants.IQ2_XXS, quants.IQ2_XS, quants.IQ2_S, quants.IQ3_XXS, quants.IQ3_S, quants.IQ1_S)

packed = b""
for kind in KINDS:
    kind.init_grid()
    decoded = kind.grid + (1 if kind is quants.IQ1_S else 0)
    print(kind.__name__, hashlib.sha256(decoded.astype(np.uint8).tobytes()).hexdigest())
    packed += bytes.fromhex(kind.grid_hex.decode())
OUT.write_bytes(packed)
