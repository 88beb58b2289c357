#!/usr/bin/env python3
"""Tokens per second that a client sees through proxy and daemon, as a share of the engine's own figure for the same request.

  benches/overhead.py MODEL.gguf [--tokens 256] [--runs 9] [--threads 1]      needs target/release (make release)

Both figures come from one request: the engine's from `timings`, the client's from the arrival of the first and of the last token at a raw
socket. Prints one line per run and the median ratio; exits 1 when the median is below 0.98.
"""
import argparse, json, pathlib, socket, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def stream(port, key, tokens):
    body = json.dumps({"model": "auto", "prompt": "Once upon a time", "max_tokens": tokens, "stream": True, "ignore_eos": True,
                       "stream_options": {"include_usage": True}}).encode()
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: o\r\nauthorization: Bearer %s\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (key, len(body)) + body)
        first = last = None
        text = b""
        while chunk := s.recv(65536):
            now = time.perf_counter()
            if b'"text"' in chunk:
                first = first or now
                last = now
            text += chunk
    usage = next(json.loads(l[6:]) for l in text.decode().splitlines() if l.startswith("data: ") and '"usage":{' in l)
    timings = usage.get("timings") or usage["usage"]["timings"]
    return (tokens - 1) / (last - first), timings["predicted_per_second"] * (tokens - 1) / tokens


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("model"); ap.add_argument("--tokens", type=int, default=256)
    ap.add_argument("--runs", type=int, default=9); ap.add_argument("--threads", type=int, default=1)
    a = ap.parse_args()
    bins = ROOT / "target/release"
    with tempfile.TemporaryDirectory() as d:
        d = pathlib.Path(d)
        key = "bench-key-0123456789abcdef"
        (d / "keys").write_text(subprocess.run([bins / "omni-proxy", "--hash-key", "bench"], input=key + "\n", capture_output=True, text=True, check=True).stdout)
        with socket.socket() as p:
            p.bind(("127.0.0.1", 0)); port = p.getsockname()[1]
        daemon = subprocess.Popen([bins / "omni-inferd", "serve", a.model, "--socket", d / "s", "--threads", str(a.threads), "--ctx", "4096"], stderr=subprocess.DEVNULL)
        proxy = subprocess.Popen([bins / "omni-proxy", "--socket", d / "s", "--listen", f"127.0.0.1:{port}", "--keys", d / "keys"], stderr=subprocess.DEVNULL)
        try:
            while subprocess.run([bins / "omnictl", "--socket", d / "s", "health"], capture_output=True).returncode:
                time.sleep(0.2)
            ratios = []
            for run in range(a.runs + 1):
                seen, own = stream(port, key.encode(), a.tokens)
                if run:  # the first one warms up
                    ratios.append(seen / own)
                    print(f"run {run}: client {seen:.1f} tok/s, engine {own:.1f} tok/s, ratio {seen / own:.4f}")
            median = statistics.median(ratios)
            print(f"median ratio {median:.4f}")
            return 0 if median >= 0.98 else 1
        finally:
            proxy.terminate(); daemon.terminate(); proxy.wait(); daemon.wait()


sys.exit(main())
