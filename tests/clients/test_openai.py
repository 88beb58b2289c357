"""The official Python client, through the proxy."""

import asyncio

import httpx
import openai
import pytest

STORY = "Once upon a time"


@pytest.fixture(scope="module")
def client(proxy):
    return openai.OpenAI(base_url=proxy.url + "/v1", api_key=proxy.key, max_retries=0)


def test_models(client):
    assert {m.id for m in client.models.list()} >= {"oracle", "executor"}
    assert client.models.retrieve("oracle").id == "oracle"


def test_completion_is_the_golden_story(client):
    out = client.completions.create(model="executor", prompt=STORY, max_tokens=32, temperature=0)
    assert out.choices[0].text.startswith(", there was a little girl named Lily. She loved to play outside")
    assert out.choices[0].finish_reason == "length"
    assert out.usage.completion_tokens == 32
    assert out.usage.prompt_tokens + 32 == out.usage.total_tokens


def test_stream_equals_whole(client):
    ask = dict(model="oracle", prompt=STORY, max_tokens=48, temperature=0.9, seed=7)
    whole = client.completions.create(**ask).choices[0].text
    chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole
    assert chunks[-1].usage.completion_tokens == 48
    assert len(chunks) > 10, "a stream, not one lump"


def test_seeds(client):
    def story(seed):
        return client.completions.create(model="oracle", prompt=STORY, max_tokens=24, temperature=1.0, seed=seed).choices[0].text

    assert story(1) == story(1)
    assert len({story(s) for s in range(5)}) > 1


def test_chat_and_stream(client):
    ask = dict(model="oracle", messages=[{"role": "user", "content": STORY}], max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**ask)
    assert whole.choices[0].message.role == "assistant"
    text = whole.choices[0].message.content
    assert len(text) > 20
    deltas = [c for c in client.chat.completions.create(**ask, stream=True) if c.choices]
    assert deltas[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in deltas) == text
    assert deltas[-1].choices[0].finish_reason == "length"


def test_n_stop_logprobs(client):
    out = client.chat.completions.create(
        model="oracle", messages=[{"role": "user", "content": STORY}], max_tokens=40, n=3, seed=3, temperature=1.0, stop=["."], logprobs=True, top_logprobs=4
    )
    assert sorted(c.index for c in out.choices) == [0, 1, 2]
    for choice in out.choices:
        assert "." not in choice.message.content
        assert choice.logprobs.content and all(len(t.top_logprobs) == 4 for t in choice.logprobs.content)
        assert all(t.logprob <= 0 for t in choice.logprobs.content)


def test_legacy_logprobs_and_echo(client):
    out = client.completions.create(model="oracle", prompt=STORY, max_tokens=4, echo=True, logprobs=2, temperature=0)
    choice = out.choices[0]
    assert choice.text.startswith(STORY)
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(p <= 0 for p in choice.logprobs.token_logprobs[1:])


def test_cached_tokens_are_reported(client):
    prompt = " ".join([STORY] * 30)
    client.completions.create(model="oracle", prompt=prompt, max_tokens=1)
    again = client.completions.create(model="oracle", prompt=prompt, max_tokens=1)
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_errors_are_the_clients_own(client, proxy):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="nobody", prompt="x")
    assert "oracle" in str(unknown.value), "names the known models"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="oracle", prompt="word " * 2000)
    assert "512" in str(long.value) and long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="oracle", prompt="x", temperature=-1)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=proxy.url + "/v1", api_key="wrong", max_retries=0).models.list()


def test_async_many_at_once(proxy):
    async def run():
        async with openai.AsyncOpenAI(base_url=proxy.url + "/v1", api_key=proxy.key) as client:
            async def one(i):
                parts = []
                async for chunk in await client.completions.create(model="oracle", prompt=f"{STORY} {i}", max_tokens=24, stream=True, seed=i):
                    parts.append(chunk.choices[0].text if chunk.choices else "")
                return "".join(parts)

            return await asyncio.gather(*(one(i) for i in range(24)))

    assert all(asyncio.run(run()))


def test_alias_and_auto(client):
    assert client.completions.create(model="stories", prompt=STORY, max_tokens=1).model == "oracle"
    assert client.completions.create(model="auto", prompt=STORY, max_tokens=1).model in ("oracle", "executor")


@pytest.mark.parametrize("http2", [False, True])
def test_httpx_sync_and_async(proxy, http2):
    headers = {"authorization": f"Bearer {proxy.key}"}
    body = {"model": "oracle", "prompt": STORY, "max_tokens": 4}
    modes = dict(http1=not http2, http2=http2, headers=headers, timeout=60)
    with httpx.Client(**modes) as client:
        for _ in range(3):
            answer = client.post(proxy.url + "/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")

    async def run():
        async with httpx.AsyncClient(**modes) as client:
            return await asyncio.gather(*(client.post(proxy.url + "/v1/completions", json=body) for _ in range(16)))

    assert [a.status_code for a in asyncio.run(run())] == [200] * 16


def test_upgrade_h2c_is_ignored(proxy):
    headers = {"authorization": f"Bearer {proxy.key}", "connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQAAP__"}
    answer = httpx.get(proxy.url + "/v1/models", headers=headers)
    assert answer.status_code == 200 and answer.http_version == "HTTP/1.1"


def test_control_is_not_behind_the_proxy(proxy):
    headers = {"authorization": f"Bearer {proxy.key}"}
    for path in ["/control/v1/status", "/v1/../control/v1/status", "/v1/%2e%2e/control/v1/status", "//control/v1/status", "/metrics", "/tokenize"]:
        assert httpx.get(proxy.url + path, headers=headers).status_code in (400, 404), path
