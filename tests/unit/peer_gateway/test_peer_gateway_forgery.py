"""What a web page can make a browser send to a gateway on this machine: none of it does anything.

Each variant is asked of the real HTTP server over a socket, with the real key where the variant
is about rebinding: even a page that learnt the key is refused.
"""

import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest
import trio
from gateway_kit import MODEL, ScriptHost
from test_peer_gateway_http import ASK, Gateway, open_gateway

pytestmark = pytest.mark.sockets

EVIL = "http://evil.example"
JSON = "application/json"
PORT = "{port}"  # stands for the gateway's own
OURS = {"host": f"localhost:{PORT}"}

FORGED = {
    # -- a name of the attacker's that points here (DNS rebinding) -----------------------------
    "rebound_name": {"host": "evil.example"},
    "rebound_name_with_our_port": {"host": f"evil.example:{PORT}"},
    "rebound_name_and_its_origin": {"host": f"evil.example:{PORT}", "origin": f"{EVIL}:{PORT}"},
    "rebound_name_said_to_be_same_origin": {
        "host": f"evil.example:{PORT}",
        "origin": f"{EVIL}:{PORT}",
        "sec-fetch-site": "same-origin",
    },
    "name_below_ours": {"host": f"localhost.evil.example:{PORT}"},
    "name_that_begins_with_our_address": {"host": f"127.0.0.1.evil.example:{PORT}"},
    "name_that_ends_in_ours": {"host": f"evil-localhost:{PORT}"},
    "name_with_a_dot_at_its_end": {"host": f"evil.example.:{PORT}"},
    "address_in_a_name_service": {"host": f"127-0-0-1.nip.example:{PORT}"},
    "address_of_the_wildcard": {"host": f"0.0.0.0:{PORT}"},
    "address_as_one_number": {"host": f"2130706433:{PORT}"},
    "address_in_hexadecimal": {"host": f"0x7f000001:{PORT}"},
    "address_of_another_machine": {"host": f"192.168.1.7:{PORT}"},
    "host_with_two_ports": {"host": f"localhost:{PORT}:evil.example"},
    "host_empty": {"host": ""},
    # -- a page of another origin (CSRF) -------------------------------------------------------
    "other_origin": {**OURS, "origin": EVIL},
    "other_origin_encrypted": {**OURS, "origin": "https://evil.example"},
    "origin_of_a_sandbox": {**OURS, "origin": "null"},
    "origin_empty": {**OURS, "origin": ""},
    "origin_of_a_file": {**OURS, "origin": "file://"},
    "origin_of_an_extension": {**OURS, "origin": "chrome-extension://abcdefgh"},
    "origin_on_another_port": {**OURS, "origin": "http://localhost:3000"},
    "origin_under_our_other_name": {**OURS, "origin": f"http://127.0.0.1:{PORT}"},
    "origin_encrypted_on_our_port": {**OURS, "origin": "https://localhost"},
    "origin_below_ours": {**OURS, "origin": f"http://localhost.evil.example:{PORT}"},
    "origin_with_our_name_as_user": {**OURS, "origin": f"http://localhost:{PORT}@evil.example"},
    "referer_of_another_site": {**OURS, "referer": f"{EVIL}/page"},
    "referer_with_our_name_in_its_path": {**OURS, "referer": f"{EVIL}/http://localhost:{PORT}"},
    "fetched_across_sites": {**OURS, "sec-fetch-site": "cross-site"},
    "fetched_from_the_same_site": {**OURS, "sec-fetch-site": "same-site"},
    "fetched_from_who_knows": {**OURS, "sec-fetch-site": "whatever"},
    "good_origin_but_fetched_across_sites": {
        **OURS,
        "origin": f"http://localhost:{PORT}",
        "sec-fetch-site": "cross-site",
    },
    "good_fetch_but_another_origin": {**OURS, "origin": EVIL, "sec-fetch-site": "same-origin"},
}

FORMS = {
    "form_urlencoded": {"content-type": "application/x-www-form-urlencoded"},
    "form_with_charset": {"content-type": "Application/X-WWW-Form-Urlencoded; charset=utf-8"},
    "form_multipart": {"content-type": "multipart/form-data; boundary=x"},
    "form_of_text_that_is_json": {"content-type": "text/plain"},
    "form_of_text_said_to_be_utf8": {"content-type": "text/plain;charset=UTF-8"},
}


async def state_of(gateway: Gateway, host: ScriptHost) -> tuple[int, list[str]]:
    """Return how often the host was asked, and every row of the gateway's journal."""
    await gateway.world.journal.flush()
    with contextlib.closing(sqlite3.connect(gateway.directory / "gateway.sqlite3")) as journal:
        return len(host.requests), list(journal.iterdump())


async def ask(port: int, method: str, path: str, headers: dict[str, str], body: bytes) -> int:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
    lines += [f"content-length: {len(body)}", "connection: close", "", ""]
    head = "\r\n".join(lines).replace(PORT, str(port)).encode()
    with trio.fail_after(10):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(head + body)
            answer = b"".join([part async for part in stream])
    assert b"access-control-" not in answer.lower()
    return int(answer.split()[1])


async def test_pages_of_others_are_all_refused_and_change_nothing(tmp_path: Path) -> None:
    body = msgspec.json.encode({"model": MODEL, "messages": ASK})
    async with open_gateway(tmp_path) as (gateway, host):
        port = int(gateway.url.rpartition(":")[2])
        key = {"authorization": f"Bearer {gateway.key}"}
        before = await state_of(gateway, host)
        for name, headers in FORGED.items():
            asked = {**headers, **key, "content-type": JSON}
            assert await ask(port, "POST", "/v1/chat/completions", asked, body) == 403, name
            assert await ask(port, "GET", "/v1/models", {**headers, **key}, b"") == 403, name
            assert await ask(port, "GET", "/health", headers, b"") == 403, name
            preflight = {**headers, "access-control-request-method": "POST"}
            assert await ask(port, "OPTIONS", "/v1/chat/completions", preflight, b"") == 403, name
        for name, headers in FORMS.items():
            asked = {**OURS, **headers}
            assert await ask(port, "POST", "/v1/chat/completions", asked, body) == 403, name
        assert await state_of(gateway, host) == before
        asked = {**OURS, **key, "content-type": JSON}
        assert await ask(port, "POST", "/v1/chat/completions", asked, body) == 200


async def test_reading_with_every_method_changes_nothing(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as (gateway, host):
        port = int(gateway.url.rpartition(":")[2])
        key = {"authorization": f"Bearer {gateway.key}"}
        asked_before = len(host.requests)
        body = msgspec.json.encode({"model": MODEL, "messages": ASK})
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"):
            headers = {**OURS, **key, "content-type": JSON}
            status = await ask(port, method, "/v1/chat/completions", headers, body)
            assert status == 405, method
        assert len(host.requests) == asked_before
