#!/usr/bin/env python3
"""What a restart costs with and without the vault: time from the daemon's start to the first token.

    benches/restart.py FILE.gguf [--bin target/release] [--rounds 3] [--settle 0]

Plays the service manager: keeps the descriptors that the daemon stores (FDSTORE=1) and hands them to the next one. Rounds
alternate between a daemon that gets nothing, with the file out of the page cache, and one that gets the weights."""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
import threading
import time


class Manager:
    """A service manager's descriptor store."""

    def __init__(self, path):
        self.path, self.stored = str(path), {}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            message, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 8)
            fields = dict(line.split("=", 1) for line in message.decode().splitlines() if "=" in line)
            if fields.get("FDSTORE") == "1":
                self.stored[fields["FDNAME"]] = descriptors.pop()
            for descriptor in descriptors:  # BARRIER=1 waits for that
                os.close(descriptor)
            if fields.get("FDSTOREREMOVE") == "1" and fields["FDNAME"] in self.stored:
                os.close(self.stored.pop(fields["FDNAME"]))

    def start(self, program, directory, stored):
        names = list(stored)
        opened = "".join(f" {n}</proc/{os.getpid()}/fd/{stored[name]}" for n, name in enumerate(names, 3))
        script = f"LISTEN_PID=$$ exec {program} --config config.toml{opened}"
        env = os.environ | {
            "NOTIFY_SOCKET": self.path,
            "LISTEN_FDS": str(len(names)),
            "LISTEN_FDNAMES": ":".join(names),
        }
        log = open(directory / "log", "a")
        return subprocess.Popen(["sh", "-c", script], cwd=directory, env=env, stdin=subprocess.DEVNULL, stderr=log)


def request(path, method, target, body=b""):
    """The answer's lines, as they come."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    head = f"{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    with connection.makefile("rb") as lines:
        yield from lines


def get(path, target):
    return json.loads(b"".join(request(path, "GET", target)).split(b"\r\n\r\n", 1)[1])


class Loading(OSError):
    """The daemon waited as long as it lets a request wait for its model."""


def first_token(path):
    body = {"model": "m", "prompt": "Once upon a time", "max_tokens": 1, "stream": True, "ignore_eos": True}
    for line in request(path, "POST", "/v1/completions", json.dumps(body).encode()):
        if line.startswith(b"data: ") and b'"text"' in line:
            return
        if line.startswith(b"HTTP/1.1 503"):
            raise Loading
        assert not line.startswith(b"HTTP/1.1") or b" 200 " in line, line
    raise SystemExit("no token came")


def run(manager, program, directory, stored, keep, settle=0.0):
    """Seconds from the start to the first token, from spawn to ready, and how the weights came."""
    path = directory / "omni.sock"
    began = time.monotonic()
    daemon = manager.start(program, directory, stored)
    try:
        while True:
            try:
                first_token(path)
                break
            except Loading:
                model = get(path, "/control/v1/models/m")
                if model["state"] == "failed":
                    raise SystemExit(f"the model failed: {(directory / 'log').read_text()[-600:]}") from None
            except OSError:
                time.sleep(0.002)
        seconds = time.monotonic() - began
        model = get(path, "/control/v1/models/m")
        began = time.monotonic()
        first_token(path)
        warm = time.monotonic() - began
        while keep and not any(image["stored"] for image in get(path, "/control/v1/vault")["images"]):
            time.sleep(0.05)
        time.sleep(settle)
    finally:
        daemon.kill()
        daemon.wait()
    return seconds, model["load_seconds"], warm, model["info"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("target/release"))
    parser.add_argument("--rounds", type=int, default=3)
    text = "seconds that the first daemon lives on, in which its weights move to transparent huge pages"
    parser.add_argument("--settle", type=float, default=0.0, help=text)
    options = parser.parse_args()
    program = (options.bin / "omni-inferd").resolve()
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        manager = Manager(directory / "notify")
        (directory / "config.toml").write_text(
            f'[daemon]\nsocket = "omni.sock"\n[[model]]\nid = "m"\npath = "{options.file.resolve()}"\n'
            "context = 512\nparallel = 1\nprefill_chunk = 16\npreload = true\n"
        )
        rows = {"file": [], "vault": []}
        for _ in range(options.rounds):
            with open(options.file, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for name in list(manager.stored):
                os.close(manager.stored.pop(name))
            rows["file"].append(run(manager, program, directory, {}, True, options.settle))
            time.sleep(0.5)
            rows["vault"].append(run(manager, program, directory, dict(manager.stored), False))
        weights = rows["file"][0][3]["weight_bytes"]
        print(f"{options.file.name}: {weights / 1e9:.2f} GB of weights, median of {options.rounds}")
        print(f"{'weights from':24}{'start to token':>16}{'spawn to ready':>16}{'token when warm':>17}")
        for measured in rows.values():
            name = measured[0][3]["read_by"]
            figures = [statistics.median(row[i] for row in measured) for i in range(3)]
            print(f"{name:24}" + "".join(f"{figure:>{width}.3f} s" for figure, width in zip(figures, (14, 14, 15))))


if __name__ == "__main__":
    main()
