#!/usr/bin/env python3
"""Goldens from llama.cpp for the tests of the model path; see tests/goldens/README.md.

  pip install numpy gguf llama-cpp-python
  from_llama_cpp.py tiny MODEL.gguf... --tokens GOLDEN.json     logits and greedy ids over fixed tokens (F32 KV, no flash attention)
  from_llama_cpp.py quant MODEL.gguf... --tokens GOLDEN.json    the exactly dequantised F32 model's logits, and llama.cpp's
                                                                normalised mean squared error to them over all positions of
                                                                several sequences
  from_llama_cpp.py rope MODEL.gguf... --tokens GOLDEN.json      the last logits of the same weights under other rotary embeddings:
                                                                linear scaling, YaRN
  from_llama_cpp.py types MODEL-f32.gguf --tokens GOLDEN.json   as quant, for the model with random blocks of each type that no
                                                                small file holds in place of its layers' matrices, and for one
                                                                with all of them; the blocks follow from the golden's `factor`
  from_llama_cpp.py long MODEL-f32.gguf...                      the last logits of a prompt of 700 tokens
  from_llama_cpp.py hf NAME.gguf.zst... --tokens IDS.json       first and last logits of the models that from_transformers.py made, of
                                                                those that llama.cpp takes; see PEER
  from_llama_cpp.py pre VOCAB.gguf.xz --text CASES.inp          ids of the cases under each of PRE, by that vocabulary
  from_llama_cpp.py stories MODEL-{f32,f16,...}.gguf --text TEXT
                                  greedy continuations of fixed prompts; perplexity by llama-perplexity's definition,
                                  context 512 (F16 KV)

Prints JSON. --check GOLDEN.json compares instead and fails when a logit differs by more than 1e-4 of the range, an error
or a perplexity by more than 1e-3 of itself, anything else at all, or when one has what the other lacks. Only models that
are named are compared, and all that is known of each.
"""
import argparse, json, lzma, math, os, sys, tempfile
import numpy as np

PROMPTS = ["Once upon a time", "Lily and Tom", "One day, a little dog", "The sun was shining"]


# Keys behind the architecture's prefix; the tests make the same files of them. (The tiny llama has frequency factors, too.)
ROPES = {
    "linear": {"keys": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}},
    "yarn": {"keys": {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}},
    # Not the keys of YaRN's own numbers: llama-cpp-python passes its defaults for them over what the file says.
}

ABOUT = ("greedy continuations by llama.cpp (CPU, 2 threads, F16 KV), ids and text; perplexity over omni-stories-heldout.txt, "
         "context 512")
LONG = 700
SEQUENCES, SHIFT = 24, 37  # of quant: sequence s is the tokens with SHIFT·s added to each id


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
    text = model.llama.tokenize(PROMPTS[0].encode(), add_bos=True, special=False)
    text_ids, text_gap = model.greedy(text, 24)
    return {"tokens": tokens, "logits_last": numbers(rows[-1]), "logits_pos0": numbers(rows[0]),
            "argmax_per_pos": [int(i) for i in rows.argmax(1)], "greedy24": ids, "min_gap": round(gap, 5),
            "text_prompt": PROMPTS[0], "text_prompt_ids": text, "text_greedy24": text_ids, "text_min_gap": round(text_gap, 5)}


def long(path):
    """The last logits of a prompt of several splits and chunks; the tests make the same one."""
    tokens = [3 + i * i % 151 for i in range(LONG)]
    return {"length": LONG, "logits_last": numbers(Model(path, 1024, f16_kv=False).logits(tokens)[-1])}


# What makes llama.cpp compute as transformers does: keys that it does not do without, and the rows up to which it does.
PEER = {"glm-4.7-flash": {"keys": {"expert_gating_func": 2}}, "phi3": {"rows": 24}}
# Not taken: deepseek-v2 (without compressed queries only with 27 layers), qwen3next, qwen35, qwen35moe (heads of q and v of one
# width only: see the even ones and the converted one). gpt-oss: its ramp of YaRN is another (see tests/goldens/README.md).
NOT_PEER = ["deepseek-v2", "gpt-oss", "qwen3next", "qwen35", "qwen35moe"]


def hf(path, ids):
    """First and last logits over the ids. A vocabulary without merges is taken away."""
    import zstandard
    name = os.path.basename(path).removesuffix(".gguf.zst")
    if name in NOT_PEER:
        return None
    change = {"keys": {}, "rows": len(ids)} | PEER.get(name, {})
    key = b"tokenizer.ggml.model" + (8).to_bytes(4, "little") + (4).to_bytes(8, "little")
    with tempfile.TemporaryDirectory() as folder:
        plain, target = os.path.join(folder, "model.gguf"), os.path.join(folder, "changed.gguf")
        data = zstandard.ZstdDecompressor().decompressobj().decompress(open(path, "rb").read())
        open(plain, "wb").write(data.replace(key + b"gpt2", key + b"none") if b".vocab_size" in data else data)
        if change["keys"]:
            rewritten(plain, target, change)
        rows = Model(target if change["keys"] else plain, 128, f16_kv=False).logits(ids[:change["rows"]])
    return {**change, "logits_pos0": numbers(rows[0]), "logits_last": numbers(rows[-1])}


def numbers(row):
    return [round(float(v), 5) for v in row]


def rope(path, tokens):
    """The last logits under each of ROPES."""
    cases = {}
    for name, change in ROPES.items():
        with tempfile.TemporaryDirectory() as folder:
            target = os.path.join(folder, "changed.gguf")
            rewritten(path, target, change)
            last = Model(target, 256, f16_kv=False).logits(tokens)[-1]
        cases[name] = {**change, "logits_last": numbers(last)}
    return {"tokens": tokens, "ropes": cases}


def dequantised(path, target):
    """Writes the same model with every tensor decoded to F32 by the gguf package."""
    rewritten(path, target, {"keys": {}})


def rewritten(path, target, change):
    """Writes the same model decoded to F32, with other keys of its architecture."""
    import gguf
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    prefix = reader.fields["general.architecture"].contents()
    for key, value in change["keys"].items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(f"{prefix}.{key}", value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quant(path, tokens):
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "f32.gguf")
        dequantised(path, target)
        models = [Model(p, 256, f16_kv=False) for p in (path, target)]
        vocab = models[0].llama.n_vocab()
        # One sequence is too small a sample: the rounding noise of 48 positions alone scatters by several per cent.
        sequences = [[(t + SHIFT * s) % vocab for t in tokens] for s in range(SEQUENCES)]
        found, exact = (np.stack([m.logits(s) for s in sequences]).astype(np.float64) for m in models)
    error = ((found - exact) ** 2).sum() / (exact ** 2).sum()
    return {"tokens": tokens, "sequences": SEQUENCES, "shift": SHIFT, "nmse": float(f"{error:.4e}"),
            "dequantized_f32": {"logits_last": numbers(exact[0, -1]), "logits_pos0": numbers(exact[0, 0])}}


# Where the F16 factor lies in a block of each type.
TYPES = {"IQ1_S": 0, "IQ1_M": None, "IQ2_XXS": 0, "IQ2_XS": 0, "IQ2_S": 0, "IQ3_XXS": 0, "IQ3_S": 0, "IQ4_NL": 0, "IQ4_XS": 0,
         "TQ1_0": 52, "TQ2_0": 64, "MXFP4": None, "NVFP4": None}
SPREAD = 0.08  # standard deviation of the weights that are replaced


def random_bytes(count, seed):
    """The bytes of splitmix64's numbers from `seed` on, little-endian."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, count // 8 + 2, dtype=np.uint64) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return (z ^ z >> np.uint64(31)).astype("<u8").view(np.uint8)[:count]


def blocks(name, count, factor, seed):
    """Random blocks whose factor is the F16 number of bits `factor`; MXFP4, NVFP4: whose scale bytes are at least it."""
    import gguf
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    data = random_bytes(count * size, seed).reshape(count, size).copy()
    if name == "IQ1_M":
        for i in range(4):
            data[:, 49 + 2 * i] = data[:, 49 + 2 * i] & 15 | (factor >> 4 * i & 15) << 4
    elif name == "MXFP4":
        data[:, 0] = factor + (data[:, 0] & 1)
    elif name == "NVFP4":
        data[:, :4] = factor + (data[:, :4] & 15)
    else:
        if name == "TQ2_0":  # 1 for 3, which stands for 2: as many -1 as 1
            data[:, :64] &= ~((data[:, :64] & data[:, :64] >> 1 & 0x55) << 1)
        data[:, TYPES[name]], data[:, TYPES[name] + 1] = factor & 255, factor >> 8
    return data


def decoded(name, data):
    import gguf
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])


def factor(name):
    """The factor that gives random blocks about the spread wanted."""
    spread = {f: decoded(name, blocks(name, 64, f, 0)).std() for f in
              (range(110, 128) if name == "MXFP4" else range(0, 112, 8) if name == "NVFP4" else (0x3C00,))}
    if len(spread) > 1:
        return min(spread, key=lambda f: abs(math.log(spread[f] / SPREAD)))
    return int(np.float16(SPREAD / spread[0x3C00]).view(np.uint16))


def replaced(path, target, names, factors):
    """Writes the model with the matrices of its layers in random blocks of the types, in turn."""
    import gguf
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    nth = 0
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            name = names[nth % len(names)]
            kind = gguf.GGMLQuantizationType[name]
            count = int(tensor.n_elements) // gguf.GGML_QUANT_SIZES[kind][0]
            data = blocks(name, count, factors[name], nth << 32).reshape(int(tensor.shape[1]), -1)
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
            nth += 1
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types(path, tokens):
    factors, found = {name: factor(name) for name in TYPES}, {}
    for what in [*TYPES, "mixed"]:
        with tempfile.TemporaryDirectory() as folder:
            target = os.path.join(folder, "model.gguf")
            replaced(path, target, [*TYPES] if what == "mixed" else [what], factors)
            case = quant(target, tokens)
        found[what] = {"nmse": case["nmse"], "logits_last": case["dequantized_f32"]["logits_last"]}
        if what != "mixed":
            found[what]["factor"] = factors[what]
    return {"tokens": tokens, "sequences": SEQUENCES, "shift": SHIFT, "types": found}


def stories(paths, text):
    golden = {"about": ABOUT, "prompts": {p: {} for p in PROMPTS}, "perplexity": {}}
    for path in paths:
        kind = os.path.basename(path).removesuffix(".gguf").rsplit("-", 1)[-1]
        model = Model(path, 256, f16_kv=True)
        for prompt, case in golden["prompts"].items():
            case["ids"] = model.llama.tokenize(prompt.encode(), add_bos=True, special=False)
            case[kind] = model.greedy(case["ids"], 64)[0]
            if kind == "f32":
                case["text_f32"] = model.llama.detokenize(case[kind]).decode()
        golden["perplexity"][kind] = perplexity(path, text)
    return golden


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
    return round(math.exp(sum(losses) / len(losses)), 4)


# Pre-tokenizers of which no committed vocabulary has its own. Not those in which llama.cpp departs from their makers'.
PRE = ["dbrx", "llama-bpe", "smollm", "starcoder", "deepseek-coder", "deepseek-v3", "tekken", "qwen35"]
CASE_END = "\n__ggml_vocab_test__\n"  # of the .inp files


def pre(path, cases):
    """Ids of the cases by a byte-level vocabulary, under the name of each pre-tokenizer in place of its own."""
    import llama_cpp
    size = lambda number: number.to_bytes(8, "little")
    with lzma.open(path) as file:
        data = file.read()
    key = b"tokenizer.ggml.pre" + (8).to_bytes(4, "little")
    at = data.index(key) + len(key)
    end = at + 8 + int.from_bytes(data[at:at + 8], "little")
    found = {}
    for name in PRE:
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            file.write(data[:at] + size(len(name)) + name.encode() + data[end:])
            file.flush()
            vocabulary = llama_cpp.Llama(file.name, vocab_only=True, verbose=False)
            found[name] = [vocabulary.tokenize(case.encode(), add_bos=False, special=False) for case in cases]
    return found


def differences(found, golden, where=""):
    """Lines that say where two goldens differ."""
    name = where.rsplit("/", 1)[-1]
    if isinstance(found, dict) and isinstance(golden, dict):
        for key in sorted(found.keys() ^ golden.keys()):
            yield f"{where}/{key}: only in the {'golden' if key in golden else 'new values'}"
        for key in sorted(found.keys() & golden.keys()):
            yield from differences(found[key], golden[key], f"{where}/{key}")
    elif name.startswith("logits"):
        a, b = np.array(found), np.array(golden)
        if a.shape != b.shape or abs(a - b).max() > 1e-4 * np.ptp(b):
            yield f"{where}: other logits"
    elif name.endswith("min_gap"):
        if abs(found - golden) > 1e-4:
            yield f"{where}: {found} is not {golden}"
    elif isinstance(found, float) and isinstance(golden, float):
        if abs(found - golden) > 1e-3 * abs(golden):
            yield f"{where}: {found} is not {golden}"
    elif found != golden:
        yield f"{where}: {found} is not {golden}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tiny", "quant", "types", "rope", "long", "hf", "pre", "stories"])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--text", help="text whose perplexity is taken (stories), or cases (pre)")
    parser.add_argument("--tokens", help="JSON file whose `tokens` lists are used: a model's own, else the first (the golden)")
    parser.add_argument("--check", help="golden to compare with")
    args = parser.parse_args()
    golden = json.load(open(args.check)) if args.check else {}
    names = [os.path.basename(path) for path in args.files]
    if args.what == "stories":
        result = stories(args.files, args.text or parser.error("stories needs --text"))
    elif args.what == "pre":
        cases = open(args.text or parser.error("pre needs --text"), encoding="utf-8", newline="").read().split(CASE_END)
        result = {name: pre(path, cases) for name, path in zip(names, args.files)}
    elif args.what == "hf":
        ids = json.load(open(args.tokens or parser.error("hf needs --tokens")))
        found = {name: hf(path, ids) for name, path in zip(names, args.files)}
        result = {name.removesuffix(".gguf.zst"): case for name, case in found.items() if case}
        golden = {name: case for name, case in golden.items() if f"{name}.gguf.zst" in names}
    elif args.what == "long":
        result = {name: long(path) for name, path in zip(names, args.files)}
        golden = {name: case for name, case in golden.items() if name in names}
    else:
        source = json.load(open(args.tokens or args.check or parser.error("--tokens or --check is needed")))
        first = next(iter(source.values()))["tokens"]
        job = {"tiny": measure, "quant": quant, "types": types, "rope": rope}[args.what]
        tokens = [source.get(name, {}).get("tokens", first) for name in names]
        result = {name: job(path, own) for name, path, own in zip(names, args.files, tokens)}
        golden = {name: case for name, case in golden.items() if name in names}
    if not args.check:
        json.dump(result, sys.stdout)
        return
    faults = list(differences(result, golden))
    print("\n".join(faults) or f"{', '.join(names)}: all as in {args.check}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
