#!/usr/bin/env python3
"""Decode speed beside other processes that want the same CPUs, interleaved with a peer on the same file.

    benches/disturbed.py MODEL [--peer LLAMA_BENCH] [--burners N] [--rounds N] [--tokens N] [--threads 2,8]

Each round runs every engine undisturbed, then beside N busy processes (default: one per CPU, so 50% is the fair share).
--threads adds rounds of more threads than CPUs, as shares of the first number's speed. Records: benches/records/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def speed(command):
    """Tokens per second of one run; both engines write llama-bench's JSON."""
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout)[0]["avg_ts"]


def beside(burners, command):
    """The same while `burners` processes compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(burners)]
    try:
        return speed(command)
    finally:
        for other in others:
            other.kill()
            other.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--peer", help="llama-bench of llama.cpp")
    parser.add_argument("--burners", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", default=str(len(os.sched_getaffinity(0))))
    args = parser.parse_args()
    threads = args.threads.split(",")
    own = [str(ROOT / "target/release/omnictl"), "bench", args.model, "-p", "0", "-n", str(args.tokens), "-r", "1", "--json"]
    engines = {"omni-inferd": own + ["-t", threads[0]]}
    if args.peer:
        peer = [args.peer, "-m", args.model, "-p", "0", "-n", str(args.tokens), "-r", "1", "-o", "json"]
        engines["llama.cpp"] = peer + ["-t", threads[0]]
    shares = {}
    for _ in range(args.rounds):
        for name, command in engines.items():
            alone, disturbed = speed(command), beside(args.burners, command)
            shares.setdefault(name, []).append(disturbed / alone)
            print(f"{name:<12} {threads[0]} threads {alone:7.2f} tok/s, beside {args.burners} busy processes "
                  f"{disturbed:7.2f} ({disturbed / alone:.0%})", flush=True)
        for more in threads[1:]:
            first, other = speed(own + ["-t", threads[0]]), speed(own + ["-t", more])
            shares.setdefault(f"{more} threads", []).append(other / first)
            print(f"{'omni-inferd':<12} {threads[0]} threads {first:7.2f} tok/s, {more} threads {other:7.2f} "
                  f"({other / first:.0%})", flush=True)
    for name, values in shares.items():
        print(f"{name}: median {statistics.median(values):.0%}")


if __name__ == "__main__":
    main()
