"""Many connections, cut at random, and workers killed mid-stream: nothing hangs, leaks or touches its neighbours."""

import asyncio
import json
import os
import random
import signal
import time

import httpx

from conftest import fds, rss_kib, start_daemon, start_proxy, uds

CONNECTIONS = 1000
TOKENS = 8

CONFIG = """
[daemon]
socket = "{socket}"
max_connections = 4096

[[model]]
id = "oracle"
path = "{models}/omni-stories-q8_0.gguf"
preload = true
context = 256
parallel = 32
queue = 2000
threads = 1
"""


async def stream(port, key, cut):
    """One raw HTTP/1.1 stream; with `cut`, the connection is dropped after a few bytes. True when it ended whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"model": "oracle", "prompt": "Once upon a time", "max_tokens": TOKENS, "stream": True}).encode()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: omni\r\nauthorization: Bearer %s\r\ncontent-type: application/json\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n" % (key.encode(), len(body))
    )
    if cut:
        writer.write(body[: random.randrange(len(body) + 1)])
        await writer.drain()
        await asyncio.sleep(random.random() * 0.5)
        writer.transport.abort()
        return None
    writer.write(body)
    answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200") and b"data: [DONE]" in answer


def test_thousand_connections_a_tenth_cut(tmp_path):
    daemon = start_daemon(tmp_path, CONFIG)
    proxy = start_proxy(tmp_path, daemon)
    watched = {"daemon": daemon.pid, "proxy": proxy.pid}

    async def wave():
        return await asyncio.gather(*(stream(proxy.port, proxy.key, cut=i % 10 == 0) for i in range(CONNECTIONS)))

    asyncio.run(asyncio.wait_for(wave(), 240))  # warms allocators and pools: the second wave must not add to it
    time.sleep(1)
    before = {name: (fds(pid), rss_kib(pid)) for name, pid in watched.items()}
    results = asyncio.run(asyncio.wait_for(wave(), 240))
    assert results.count(True) == CONNECTIONS - CONNECTIONS // 10, f"{results.count(False)} streams broke"
    with uds(daemon.socket) as client:
        proxy.wait_until(lambda: idle(client), "idle model", 30)
    time.sleep(1)
    for name, pid in watched.items():
        assert fds(pid) <= before[name][0] + 16, f"{name} keeps descriptors: {before[name][0]} -> {fds(pid)}"
        assert rss_kib(pid) <= before[name][1] * 1.25 + 8192, f"{name} grew: {before[name][1]} -> {rss_kib(pid)} KiB"
    proxy.stop()
    daemon.stop()


def idle(client):
    stats = client.get("/control/v1/status").json()["models"][0]
    return stats["active_requests"] == 0 and stats["stats"]["running"] == 0 and stats["stats"]["waiting"] == 0


def test_worker_killed_fifty_times(tmp_path):
    daemon = start_daemon(tmp_path)
    ends = {"done": 0, "error": 0}

    def pid(client, model):
        return next(m["pid"] for m in client.get("/control/v1/models").json()["models"] if m["id"] == model)

    with uds(daemon.socket) as client, uds(daemon.socket) as other:
        neighbour = pid(client, "executor")
        for _ in range(50):
            daemon.wait_until(lambda: client.get("/control/v1/models/oracle").json()["state"] == "ready", "restarted model", 30)
            ask = {"model": "oracle", "prompt": "Once upon a time", "max_tokens": 400, "stream": True, "ignore_eos": True}
            with client.stream("POST", "/v1/completions", json=ask) as answer:
                lines = answer.iter_lines()
                next(line for line in lines if line.startswith("data: "))
                os.kill(pid(other, "oracle"), signal.SIGKILL)
                rest = [line for line in lines if line.startswith("data: ")]
            if rest and rest[-1] == "data: [DONE]":
                ends["done"] += 1
            else:
                assert rest and "error" in json.loads(rest[-1][6:]), "an error event ends a broken stream"
                ends["error"] += 1
            beside = other.post("/v1/completions", json={"model": "executor", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0})
            assert beside.status_code == 200 and beside.json()["choices"][0]["text"].startswith(", there was")
        assert pid(client, "executor") == neighbour, "the other model never noticed"
    assert ends["error"] >= 40, ends
    daemon.stop()


def test_frozen_worker_is_restarted(tmp_path):
    from conftest import CONFIG as BASE

    daemon = start_daemon(tmp_path, BASE.replace("[daemon]", '[daemon]\nheartbeat_timeout = "3s"'))
    with uds(daemon.socket) as client:
        first = client.get("/control/v1/models/oracle").json()["pid"]
        os.kill(first, signal.SIGSTOP)
        daemon.wait_until(lambda: client.get("/control/v1/models/oracle").json()["pid"] not in (None, first), "new worker", 30)
        daemon.wait_until(lambda: client.get("/control/v1/models/oracle").json()["state"] == "ready", "ready model", 30)
        assert client.post("/v1/completions", json={"model": "oracle", "prompt": "Once", "max_tokens": 2}).status_code == 200
    daemon.stop()


def test_drain_finishes_running_streams(tmp_path):
    daemon = start_daemon(tmp_path)
    with uds(daemon.socket) as client, uds(daemon.socket) as late:
        ask = {"model": "oracle", "prompt": "Once upon a time", "max_tokens": 300, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=ask) as answer:
            lines = answer.iter_lines()
            next(line for line in lines if line.startswith("data: "))
            daemon.child.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            try:
                refused = late.post("/v1/completions", json={"model": "oracle", "prompt": "x", "max_tokens": 1})
                assert refused.status_code == 503 and "retry-after" in refused.headers
            except httpx.TransportError:
                pass  # already gone: the stream was quicker than this request
            rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"
    daemon.stop()
