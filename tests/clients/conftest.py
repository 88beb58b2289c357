"""Real processes for real clients: a daemon with two bundled models, and a proxy with a key in front of it."""

import os
import pathlib
import secrets
import signal
import socket
import subprocess
import time

import httpx
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = ROOT / os.environ.get("OMNI_TARGET", "target/debug")
MODELS = ROOT / "models"

CONFIG = """
[daemon]
socket = "{socket}"
restart_backoff = "50ms"
restart_backoff_max = "200ms"
restart_limit = 1000
drain_timeout = "20s"

[[model]]
id = "oracle"
aliases = ["stories"]
path = "{models}/omni-stories-q8_0.gguf"
preload = true
pinned = true
context = 512
parallel = 8
threads = 1

[[model]]
id = "executor"
path = "{models}/omni-stories-f16.gguf"
preload = true
pinned = true
context = 512
parallel = 4
threads = 1
"""

PROXY = """
[proxy]
socket = "{socket}"
listen = ["127.0.0.1:{port}"]
keys = "{keys}"
max_connections = 4096
max_connections_per_address = 4096
max_requests = 4096
"""


class Process:
    """A child of the tests with its log on disk."""

    def __init__(self, args, log):
        self.log = pathlib.Path(log)
        self.child = subprocess.Popen([str(a) for a in args], stdout=self.log.open("w"), stderr=subprocess.STDOUT)

    @property
    def pid(self):
        return self.child.pid

    def stop(self, expect=0):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        code = self.child.wait(30)
        assert code == expect, f"exit {code}:\n{self.log.read_text()[-4000:]}"

    def wait_until(self, ready, what, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.child.poll() is None, f"died while waiting for {what}:\n{self.log.read_text()[-4000:]}"
            try:
                if ready():
                    return
            except (httpx.HTTPError, OSError):
                pass
            time.sleep(0.05)
        raise AssertionError(f"no {what} within {seconds} s:\n{self.log.read_text()[-4000:]}")


def uds(path, **options):
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://omni", timeout=60, **options)


def fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def rss_kib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"no VmRSS for {pid}")


def start_daemon(folder, config=CONFIG):
    sock = folder / "omni.sock"
    file = folder / "config.toml"
    file.write_text(config.format(socket=sock, models=MODELS))
    daemon = Process([BINARIES / "omni-inferd", "--config", file], folder / "daemon.log")
    daemon.socket = sock
    daemon.config = file
    with uds(sock) as client:
        daemon.wait_until(lambda: client.get("/ready").status_code == 200, "ready models")
    return daemon


def start_proxy(folder, daemon):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = "omni-" + secrets.token_hex(16)
    line = subprocess.run([BINARIES / "omni-proxy", "--hash-key", "tests"], input=key + "\n", capture_output=True, text=True, check=True)
    keys = folder / "keys"
    keys.write_text(line.stdout)
    settings = folder / "proxy.toml"
    settings.write_text(PROXY.format(socket=daemon.socket, port=port, keys=keys))
    proxy = Process([BINARIES / "omni-proxy", "--config", settings], folder / "proxy.log")
    proxy.key, proxy.keys, proxy.url, proxy.port = key, keys, f"http://127.0.0.1:{port}", port
    proxy.wait_until(lambda: httpx.get(proxy.url + "/health").status_code < 500, "answer of the proxy", 20)
    return proxy


@pytest.fixture(scope="session")
def daemon(tmp_path_factory):
    process = start_daemon(tmp_path_factory.mktemp("daemon"))
    yield process
    process.stop()


@pytest.fixture(scope="session")
def proxy(daemon, tmp_path_factory):
    process = start_proxy(tmp_path_factory.mktemp("proxy"), daemon)
    yield process
    process.stop()
