#!/usr/bin/env python3
"""Goldens from llama.cpp for the tests of the model path; see tests/goldens/README.md.

  pip install numpy gguf llama-cpp-python
  from_llama_cpp.py tiny MODEL.gguf...            logits and greedy ids over fixed tokens (F32 KV, no flash attention)
  from_llama_cpp.py quant MODEL.gguf...           the same, beside those of the exactly dequantised F32 model
  from_llama_cpp.py texts MODEL-{f32,f16}.gguf    greedy continuations of fixed prompts (F16 KV)
  from_llama_cpp.py perplexity MODEL.gguf TEXT    by llama-perplexity's definition, context 512 (F16 KV)

Prints JSON. --check GOLDEN.json compares instead and fails when a logit differs by more than 1e-4 of the range, a greedy
id differs, or a perplexity differs by more than 1e-4.
"""
import argparse, json, math, os, sys, tempfile
import numpy as np

PROMPTS = ["Once upon a time", "Lily and Tom", "One day, a little dog", "The sun was shining"]


class Model:
    """One sequence through llama-cpp-python."""

    def __init__(self, path, context, f16_kv):
        import llama_cpp
        kv = 1 if f16_kv else 0  # ggml type ids of F16 and F32
        self.llama = llama_cpp.Llama(
            path, n_ctx=context, n_batch=context, n_ubatch=min(512, context), n_threads=2, n_gpu_layers=0,
            logits_all=True, flash_attn=False, type_k=kv, type_v=kv, verbose=False)

    def logits(self, tokens):
        """float32 [tokens, vocab] of a fresh sequence."""
        self.llama.reset()
        self.llama.eval(tokens)
        return np.array(self.llama.scores[:len(tokens)], dtype=np.float32)

    def greedy(self, tokens, n):
        """n ids, and the least gap between best and second best met on the way."""
        row, out, gap = self.logits(tokens)[-1], [], math.inf
        while True:
            second, best = np.sort(row)[-2:]
            gap = min(gap, float(best - second))
            out.append(int(row.argmax()))
            if len(out) == n:
                return out, gap
            self.llama.eval(out[-1:])
            row = self.llama.scores[len(tokens) + len(out) - 1]


def measure(path, tokens):
    model = Model(path, 256, f16_kv=False)
    rows = model.logits(tokens)
    ids, gap = model.greedy(tokens, 24)
    return {"tokens": tokens, "logits_pos0": numbers(rows[0]), "logits_last": numbers(rows[-1]),
            "argmax_per_pos": [int(i) for i in rows.argmax(1)], "greedy24": ids, "min_gap": round(gap, 5)}


def numbers(row):
    return [round(float(v), 5) for v in row]


def dequantised(path, target):
    """Writes the same model with every tensor decoded to F32 by the gguf package."""
    import gguf
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quant(path, tokens):
    with tempfile.TemporaryDirectory() as folder:
        exact = os.path.join(folder, "f32.gguf")
        dequantised(path, exact)
        return {"llamacpp": measure(path, tokens), "dequantized_f32": measure(exact, tokens)}


def texts(path):
    model = Model(path, 256, f16_kv=True)
    ids = {p: model.llama.tokenize(p.encode(), add_bos=True, special=False) for p in PROMPTS}
    return {p: {"ids": i, "greedy": model.greedy(i, 64)[0]} for p, i in ids.items()}


def perplexity(path, text, context=512):
    model = Model(path, context, f16_kv=True)
    tokens = model.llama.tokenize(open(text, "rb").read(), add_bos=True, special=False)
    bos = model.llama.token_bos() if model.llama.metadata.get("tokenizer.ggml.add_bos_token") == "true" else None
    losses = []
    for start in range(0, len(tokens) - context + 1, context):
        chunk = tokens[start:start + context]
        rows = model.logits([chunk[0] if bos is None else bos] + chunk[1:]).astype(np.float64)
        for at in range(context // 2, context - 1):
            row = rows[at] - rows[at].max()
            losses.append(math.log(np.exp(row).sum()) - row[chunk[at + 1]])
    return {"perplexity": round(math.exp(sum(losses) / len(losses)), 4), "chunks": len(tokens) // context}


def differences(found, golden, where=""):
    """Lines that say where two goldens differ; what only one of them has is not compared."""
    if isinstance(found, dict):
        for key in found.keys() & golden.keys():
            yield from differences(found[key], golden[key], f"{where}/{key}")
    elif where.rsplit("/", 1)[-1].startswith("logits"):
        a, b = np.array(found), np.array(golden)
        if abs(a - b).max() > 1e-4 * np.ptp(b):
            yield f"{where}: off by {abs(a - b).max():.2e}"
    elif isinstance(found, list) and found != golden:
        yield f"{where}: {found} is not {golden}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tiny", "quant", "texts", "perplexity"])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--tokens", help="JSON file whose first `tokens` list is used (the committed golden)")
    parser.add_argument("--check", help="golden to compare with")
    args = parser.parse_args()
    golden = json.load(open(args.check)) if args.check else {}
    if args.what == "perplexity":
        result = perplexity(*args.files)
    else:
        source = json.load(open(args.tokens or args.check)) if args.what != "texts" else {}
        first = next(iter(source.values()), {})
        tokens = first.get("tokens") or first.get("llamacpp", {}).get("tokens")
        jobs = {"tiny": lambda p: measure(p, tokens), "quant": lambda p: quant(p, tokens), "texts": texts}
        result = {os.path.basename(path): jobs[args.what](path) for path in args.files}
    if not args.check:
        json.dump(result, sys.stdout)
        return
    faults = list(differences(result, golden))
    print("\n".join(faults) or f"{len(result)} agree with {args.check}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
