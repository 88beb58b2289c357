"""Measures llama.cpp through llama-cpp-python for `omnictl bench --peer`.

Arguments: a GGUF file. Reads one JSON object a line on standard input (n_prompt, n_gen, depth, batch, threads, context, ubatch, kv,
seed) and answers each with one line, {"seconds": s} or {"error": text}; the first line says {"ready": version}.
"""
import ctypes, json, random, sys, time

import llama_cpp as L


def main():
    out = sys.stdout
    quiet = L.llama_log_callback(lambda level, text, user: None)
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    L.llama_backend_init()
    params = L.llama_model_default_params()
    params.n_gpu_layers = 0
    model = L.llama_model_load_from_file(sys.argv[1].encode(), params)
    if not model:
        print(json.dumps({"error": "llama.cpp cannot load this file"}), flush=True)
        return
    vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    types = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
    context, made, depth = None, None, None
    print(json.dumps({"ready": "llama.cpp " + L.__version__}), flush=True, file=out)

    def decode(tokens):
        batch = L.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        code = L.llama_decode(context, batch)
        L.llama_synchronize(context)
        L.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode failed: {code}")

    def prompt(sequence, start, count, step, last):
        for at in range(start, start + count, step):
            n = min(step, start + count - at)
            end = at + n == start + count
            decode([(random.randrange(vocab), at + i, sequence, 1 if last and end and i == n - 1 else 0) for i in range(n)])

    for line in sys.stdin:
        ask = json.loads(line)
        try:
            wanted = (ask["threads"], ask["context"], ask["batch"], ask["ubatch"], ask["kv"])
            if wanted != made:
                if context:
                    L.llama_free(context)
                params = L.llama_context_default_params()
                params.n_ctx = ask["context"] * ask["batch"]
                params.n_batch = params.n_ubatch = max(ask["ubatch"], ask["batch"])
                params.n_seq_max = ask["batch"]
                params.n_threads = params.n_threads_batch = ask["threads"]
                params.type_k = params.type_v = types[ask["kv"]]
                context = L.llama_init_from_model(model, params)
                if not context:
                    raise RuntimeError("llama.cpp cannot make a context")
                made, depth = wanted, None
            memory = L.llama_get_memory(context)
            sequences = range(ask["batch"])
            if depth != ask["depth"]:
                L.llama_memory_clear(memory, True)
                for sequence in sequences:
                    prompt(sequence, 0, ask["depth"], ask["ubatch"], False)
                depth = ask["depth"]
                if not depth:
                    decode([(1, 0, sequence, 1) for sequence in sequences])
            for sequence in sequences:
                L.llama_memory_seq_rm(memory, sequence, depth, -1)
            began = time.perf_counter()
            for sequence in sequences:
                prompt(sequence, depth, ask["n_prompt"], ask["ubatch"], True)
            for i in range(ask["n_gen"]):
                decode([(random.randrange(vocab), depth + ask["n_prompt"] + i, sequence, 1) for sequence in sequences])
            answer = {"seconds": time.perf_counter() - began}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True, file=out)


main()
