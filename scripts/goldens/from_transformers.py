#!/usr/bin/env python3
"""Goldens from Hugging Face transformers; see tests/goldens/README.md.

  pip install numpy torch transformers gguf
  from_transformers.py MODEL.gguf IDS.i32 OUT.npy    float32 [tokens, vocab] of the F32 model in a GGUF

The second referee: it shares no code with llama.cpp but the file format.
"""
import os, sys
import numpy as np


def logits(path, ids):
    import torch
    from transformers import AutoModelForCausalLM
    folder, name = os.path.split(os.path.abspath(path))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    np.save(sys.argv[3], logits(sys.argv[1], np.fromfile(sys.argv[2], dtype=np.int32).tolist()))
