"""schemathesis against the checked-in OpenAPI document: no answer is a 500, on the API and on the control API."""

import json
import pathlib
import socket
import subprocess
import sys
import threading

from conftest import ROOT, start_daemon

CONFIG = """
[daemon]
socket = "{socket}"

[[model]]
id = "oracle"
path = "{models}/omni-stories-q4_k_m.gguf"
preload = true
context = 256
threads = 1
"""


def relay(path):
    """A TCP port on the loopback that reaches the Unix socket: schemathesis speaks TCP only."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def accept():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(str(path))
            threading.Thread(target=pump, args=(client, upstream), daemon=True).start()
            threading.Thread(target=pump, args=(upstream, client), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def test_no_server_error(tmp_path):
    daemon = start_daemon(tmp_path, CONFIG)
    listener = relay(daemon.socket)
    document = ROOT / "docs/openapi.json"
    assert len(json.loads(document.read_text())["paths"]) >= 10
    result = subprocess.run(
        [
            pathlib.Path(sys.executable).parent / "schemathesis",
            "run",
            document,
            "--url",
            f"http://127.0.0.1:{listener.getsockname()[1]}",
            "--checks",
            "not_a_server_error",
            "--max-examples",
            "12",
            "--request-timeout",
            "20",
            # Streams; and /ready, which says 503 as it should once a case has unloaded the model.
            "--exclude-path-regex",
            "events|logs|ready",
            "--seed",
            "1",
        ],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
    )
    listener.close()
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    daemon.stop()
