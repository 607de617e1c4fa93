"""The gateway's HTTP face on real sockets, asked by the OpenAI SDK and by hand."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import openai
import pytest
import trio
from gateway_kit import MODEL, WORDS, Script, ScriptHost, World, offer, open_world

from p2p.errors import ErrorCode
from p2p.session.events import ErrorInfo
from peer.gateway.guard import Guard
from peer.gateway.http import GatewayHandler, Rates
from peer.gateway.keys import KeyStore, new_key, open_keys, revoke_key
from peer.gateway.parts import monotonic_ns
from peer.http.loop import Loop
from peer.http.server import HttpServer

ResultT = TypeVar("ResultT")
TEXT = "".join(WORDS)
ASK = [{"role": "user", "content": "hello"}]

pytestmark = pytest.mark.sockets


@dataclass
class Gateway:
    """A gateway that answers on loopback, and its client."""

    world: World
    keys: KeyStore
    directory: Path
    url: str
    key: str
    key_id: str
    handler: GatewayHandler

    def sdk(self, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0)

    async def call(self, work: Callable[[], ResultT]) -> ResultT:
        with trio.fail_after(20):
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    async def ask(
        self, method: str = "POST", path: str = "/v1/chat/completions", **options: object
    ) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        with trio.fail_after(20):
            async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
                return await client.request(method, path, headers=headers, **options)


@asynccontextmanager
async def open_gateway(
    directory: Path, script: Script | None = None, **options: object
) -> AsyncIterator[tuple[Gateway, ScriptHost]]:
    rates = options.pop("rates", Rates())
    made = new_key(directory, "test", now_ns=1)
    loop = Loop()
    script = script or Script(wait_s=0.01, gap_s=0.002)
    async with open_world(directory, turn=loop.turn, first=script, **options) as world:
        with open_keys(directory) as keys:
            handler = GatewayHandler(
                dispatcher=world.parts.core.dispatcher,
                table=world.parts.core.table,
                keys=keys,
                journal=world.journal,
                guard=Guard("127.0.0.1"),
                rates=rates,
                now=monotonic_ns,
                clock=world.network.wall_clock,
                spawn=world.nursery.start_soon,
            )
            with contextlib.closing(HttpServer(loop, handler)) as server:
                port = server.listen_tcp("127.0.0.1", 0)
                world.nursery.start_soon(loop.run)
                await world.wait_ready(world.first)
                url = f"http://127.0.0.1:{port}"
                gateway = Gateway(world, keys, directory, url, made.key, made.info.key_id, handler)
                yield gateway, world.first


# -- the SDK -------------------------------------------------------------------------------------


async def test_sdk_stream_gives_the_text_and_no_usage(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, host):

        def work() -> tuple[str, list[object], dict[str, str]]:
            with gateway.sdk() as client:
                stream = client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
                chunks = list(stream)
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                return text, [chunk.usage for chunk in chunks], dict(stream.response.headers)

        text, usages, headers = await gateway.call(work)
        assert text == TEXT
        assert set(usages) == {None}
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["x-sparewatt-host"] == host.peer_id
        assert headers["x-request-id"].startswith("req_")
        assert "lowest expected time" in headers["x-sparewatt-route"]


async def test_sdk_stream_with_usage_ends_in_one_usage_chunk(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, _):

        def work() -> list[openai.types.chat.ChatCompletionChunk]:
            with gateway.sdk() as client:
                options = {"include_usage": True}
                return list(
                    client.chat.completions.create(
                        model=MODEL, messages=ASK, stream=True, stream_options=options
                    )
                )

        chunks = await gateway.call(work)
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        usage = chunks[-1].usage
        assert chunks[-1].choices == []
        assert usage.completion_tokens == len(WORDS)
        assert usage.cost_micros > 0
        assert usage.cost == pytest.approx(usage.cost_micros / 1e6)


async def test_sdk_completion_has_usage_cost_and_headers(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, host):

        def work() -> tuple[openai.types.chat.ChatCompletion, dict[str, str]]:
            with gateway.sdk() as client:
                raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK)
                return raw.parse(), dict(raw.headers)

        completion, headers = await gateway.call(work)
        assert completion.choices[0].message.content == TEXT
        assert completion.choices[0].finish_reason == "stop"
        assert headers["x-sparewatt-cost-micros"] == str(completion.usage.cost_micros)
        assert headers["x-sparewatt-host"] == host.peer_id
        assert int(headers["openai-processing-ms"]) >= 0
        assert headers["x-ratelimit-limit-requests"] == "600000"
        assert completion._request_id == headers["x-request-id"]


async def test_sdk_models_are_listed_and_found(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, _):

        def work() -> tuple[list[str], str, float]:
            with gateway.sdk() as client:
                listed = [each.id for each in client.models.list()]
                one = client.models.retrieve(MODEL)
                return listed, one.id, float(one.pricing["completion"])

        listed, one, price = await gateway.call(work)
        assert listed == [MODEL]
        assert one == MODEL
        assert price == pytest.approx(2e-6)


async def test_sdk_wrong_key_is_an_authentication_error(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, _):

        def work() -> openai.AuthenticationError:
            with gateway.sdk("sk-sw-wrong-key-of-somebody") as client:
                with pytest.raises(openai.AuthenticationError) as caught:
                    client.chat.completions.create(model=MODEL, messages=ASK)
                return caught.value

        error = await gateway.call(work)
        assert error.code == "invalid_api_key"
        assert "somebody" not in error.message


async def test_sdk_revoked_key_is_refused_within_a_second(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, _):
        assert (await gateway.ask("GET", "/v1/models")).status_code == 200
        revoke_key(gateway.directory, gateway.key_id, now_ns=2)
        with trio.fail_after(1):
            while (await gateway.ask("GET", "/v1/models")).status_code == 200:  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert (await gateway.ask("GET", "/v1/models")).json()["error"]["code"] == "invalid_api_key"


async def test_sdk_unknown_model_is_not_found_and_lists_the_offer(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, _):

        def work() -> openai.NotFoundError:
            with gateway.sdk() as client:
                with pytest.raises(openai.NotFoundError) as caught:
                    client.chat.completions.create(model="nobody/has-it", messages=ASK)
                return caught.value

        error = await gateway.call(work)
        assert (error.code, error.param, error.type) == (
            "model_not_found",
            "model",
            "invalid_request_error",
        )
        assert MODEL in error.message


async def test_sdk_host_lost_in_mid_stream_raises_and_never_ends_silently(tmp_path: Path) -> None:
    script = Script(wait_s=0.01, gap_s=0.002, break_after=4)
    async with open_gateway(tmp_path, script) as (gateway, host):

        def work() -> tuple[int, openai.APIError]:
            with gateway.sdk() as client:
                seen = 0
                stream = client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
                try:
                    for _ in stream:
                        seen += 1
                except openai.APIError as error:
                    return seen, error
                raise AssertionError("the stream ended as if it were complete")

        seen, error = await gateway.call(work)
        assert 0 < seen <= 5  # the role and four words; the last may have been on its way
        assert error.code == "host_lost"
        assert error.body["metadata"] == {"host": host.peer_id}


async def test_sdk_hang_up_reaches_the_host_within_a_second(tmp_path: Path) -> None:
    script = Script(words=["x "] * 10_000, wait_s=0.01, gap_s=0.02)
    async with open_gateway(tmp_path, script) as (gateway, host):

        def work() -> None:
            with gateway.sdk() as client:
                stream = client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
                next(iter(stream))
                stream.close()

        await gateway.call(work)
        await wait_cancelled(host)


async def test_sdk_hang_up_while_the_host_is_silent_reaches_it_too(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, Script(hangs=True)) as (gateway, host):

        def work() -> None:
            with gateway.sdk() as client, pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(
                    model=MODEL, messages=ASK, stream=True, timeout=httpx.Timeout(5, read=0.3)
                )

        await gateway.call(work)
        await wait_cancelled(host)


async def wait_cancelled(host: ScriptHost) -> None:
    with trio.fail_after(1):
        while not host.cancelled:  # noqa: ASYNC110 - a fake's counter
            await trio.sleep(0.01)


async def test_sdk_retries_a_busy_gateway_after_the_time_it_says(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, host):
        host.script.fail = ErrorInfo(code=ErrorCode.BUSY, message="full", retry_after_ms=1)

        def work() -> openai.APIStatusError:
            with gateway.sdk() as client:
                with pytest.raises(openai.InternalServerError) as caught:
                    client.chat.completions.create(model=MODEL, messages=ASK)
                return caught.value

        error = await gateway.call(work)
        assert error.status_code == 503
        assert float(error.response.headers["retry-after"]) >= 1


async def test_sdk_no_credit_is_402_and_not_retried(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, credit_micros=5) as (gateway, _):

        def work() -> openai.APIStatusError:
            with gateway.sdk() as client:
                with pytest.raises(openai.APIStatusError) as caught:
                    client.chat.completions.create(model=MODEL, messages=ASK)
                return caught.value

        error = await gateway.call(work)
        assert (error.status_code, error.code) == (402, "insufficient_funds")
        assert error.response.headers["x-should-retry"] == "false"


async def test_sdk_rate_limit_is_429_with_retry_after(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, rates=Rates(2, 10**6)) as (gateway, _):
        body = {"model": MODEL, "messages": ASK}
        answers = [await gateway.ask(json=body) for _ in range(3)]
        assert [each.status_code for each in answers] == [200, 200, 429]
        assert answers[1].headers["x-ratelimit-remaining-requests"] == "0"
        assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
        assert 0 < int(answers[2].headers["retry-after"]) <= 30


async def test_sdk_token_limit_counts_what_was_used(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, rates=Rates(100, 20)) as (gateway, _):
        body = {"model": MODEL, "messages": ASK}
        assert (await gateway.ask(json=body)).status_code == 200
        refused = await gateway.ask(json=body)
        assert refused.status_code == 429
        assert "tokens" in refused.json()["error"]["message"]


# -- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"content": b"{"}, 400, "invalid_json"),
        ({"content": b'{"model": 1}'}, 400, None),
        ({"content": b"a=b", "headers": {"content-type": "text/plain"}}, 415, None),
        (
            {"content": b"a=b", "headers": {"content-type": "application/x-www-form-urlencoded"}},
            415,
            "unsupported_media_type",
        ),
        ({"content": b"{}", "headers": {"content-encoding": "gzip"}}, 415, None),
        ({"content": b" " * (4 * 1024 * 1024 + 1)}, 413, None),
        ({"method": "GET"}, 405, "method_not_allowed"),
        ({"path": "/v1/nothing"}, 404, "unknown_url"),
        ({"path": "/"}, 404, "unknown_url"),
        ({"path": "/v1/generation", "method": "GET"}, 400, "missing_required_parameter"),
        ({"path": "/v1/generation?id=gen-", "method": "GET"}, 400, "missing_required_parameter"),
        ({"path": "/v1/generation?id=none", "method": "GET"}, 404, "not_found"),
        ({"path": "/v1/models/nobody/has-it", "method": "GET"}, 404, "model_not_found"),
        ({"headers": {"host": "evil.example"}}, 403, "host_not_allowed"),
        ({"headers": {"origin": "https://evil.example"}}, 403, "origin_not_allowed"),
        ({"headers": {"authorization": ""}}, 401, "invalid_api_key"),
    ],
)
async def test_http_bad_request_has_its_status_and_openais_body(
    tmp_path: Path, options: dict[str, object], status: int, code: str | None
) -> None:
    async with open_gateway(tmp_path) as (gateway, host):
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        answer = await gateway.ask(headers=headers, **options)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert set(error) >= {"message", "type", "param", "code"}
        assert code is None or error["code"] == code
        assert host.requests == []


async def test_http_health_needs_no_key(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, _):
        answer = await gateway.ask("GET", "/health", headers={"authorization": ""})
        assert answer.json() == {"status": "ok", "hosts": 1, "models": 1}


async def test_http_gateway_in_trouble_serves_nothing_and_says_why(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, _):
        gateway.handler.trouble = lambda: "this machine's clock is 600 s behind"
        answer = await gateway.ask(json={"model": MODEL, "messages": ASK})
        assert answer.status_code == 503
        assert "600 s behind" in answer.json()["error"]["message"]
        health = await gateway.ask("GET", "/health")
        assert health.json()["status"] == "failing"


async def test_http_hosts_show_what_was_measured(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, probes=True) as (gateway, host):
        (shown,) = (await gateway.ask("GET", "/v1/hosts")).json()["data"]
        assert (shown["peer_id"], shown["state"]) == (host.peer_id, "linked")
        (model,) = shown["models"]
        assert model["model_id"] == MODEL
        assert model["measured"]
        assert model["ttft_ms"] > 0
        assert model["price_out_micros_per_mtok"] == offer().price_out_micros_per_mtok
        traffic = shown["traffic"]
        assert traffic["frames_in"] >= traffic["batches_in"] > 0
        assert traffic["frames_out"] >= traffic["writes"] > 0


async def test_http_preview_explains_the_choice_without_sending(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, host):
        body = {"model": MODEL, "messages": ASK, "provider": {"ignore": [host.peer_id]}}
        answer = (await gateway.ask(path="/v1/route/preview", json=body)).json()
        (model,) = answer["models"]
        assert model["chosen"] is None
        assert model["excluded"] == [{"host": host.peer_id, "reason": "ignored by the client"}]
        assert host.requests == []


async def test_http_generation_proves_what_was_paid(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, _):
        answer = await gateway.ask(json={"model": MODEL, "messages": ASK})
        cost = answer.json()["usage"]["cost_micros"]
        for name in (answer.headers["x-request-id"], answer.json()["id"]):
            await gateway.world.wait_settled()
            shown = (await gateway.ask("GET", f"/v1/generation?id={name}")).json()["data"]
            assert shown["cost_micros"] == cost
            assert all(shown[each] for each in ("receipt", "batch", "cosignature", "voucher"))


async def test_http_error_before_the_first_token_is_no_stream(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, host):
        host.script.fail = ErrorInfo(code=ErrorCode.CONTEXT_LENGTH_EXCEEDED, message="too long")
        answer = await gateway.ask(json={"model": MODEL, "messages": ASK, "stream": True})
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_http_connection_serves_many_requests_in_turn(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, _):
        headers = {"authorization": f"Bearer {gateway.key}"}
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as client:
            for stream in (True, False, True):
                body = {"model": MODEL, "messages": ASK, "stream": stream}
                answer = await client.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200
                if stream:
                    assert answer.content.endswith(b"data: [DONE]\n\n")
                else:
                    assert json.loads(answer.content)["object"] == "chat.completion"


# -- a connection that says the same again -------------------------------------------------------


async def read_answer(stream: trio.SocketStream) -> tuple[int, bytes]:
    """Return status and body of an answer that has a length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some()
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += await stream.receive_some()
    return int(head.split()[1]), body


async def test_http_same_head_again_is_served_until_its_key_is_revoked(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, _):
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {gateway.url.removeprefix('http://')}\r\n"
            f"authorization: Bearer {gateway.key}\r\ncontent-type: application/json\r\n"
            "content-length: %d\r\n\r\n"
        )

        def ask(text: str) -> bytes:
            body = json.dumps(
                {"model": MODEL, "messages": [{"role": "user", "content": text}]}
            ).encode()
            return (head % len(body)).encode() + body

        stream = await trio.open_tcp_stream("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        with trio.fail_after(20):
            async with stream:
                for text in ("hello", "hello again", "and again"):
                    await stream.send_all(ask(text))
                    status, body = await read_answer(stream)
                    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (
                        200,
                        TEXT,
                    )
                await stream.send_all(ask("x").replace(b'"model"', b'"modem"'))
                status, body = await read_answer(stream)
                assert (status, json.loads(body)["error"]["param"]) == (400, "model")
                revoke_key(gateway.directory, gateway.key_id, now_ns=2)
                while status != 401:
                    await trio.sleep(0.05)
                    await stream.send_all(ask("once more"))
                    status, body = await read_answer(stream)
                assert json.loads(body)["error"]["code"] == "invalid_api_key"
