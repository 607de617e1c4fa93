"""What a part's route of the control API does with a body that is wrong, and who answers it."""

from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
import trio

from peer.host.control import ControlApi
from peer.host.control_routes import ControlError, Later, Routes, query_text, read_body
from peer.http.loop import Loop
from peer.http.messages import HttpRequest


class Window(msgspec.Struct, forbid_unknown_fields=True):
    end: int


class Body(msgspec.Struct, forbid_unknown_fields=True):
    slots: int = 1
    windows: list[Window] = []


def request(body: bytes, query: str = "") -> HttpRequest:
    return HttpRequest("PUT", "/v1/things", query, {}, body)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (b"", "", "the body is empty"),
        (b"{", "", "not JSON"),
        (b"\xff", "", "not JSON"),
        (b"[" * 5000, "", "GET /v1/things"),
        (b'{"slots": "2"}', "slots", "slots: Expected `int`, got `str`; GET /v1/things"),
        (b'{"windows": [{"end": 1}, {}]}', "windows[1]", "missing required field `end`"),
        (b'{"slot": 1}', "", "unknown field `slot`"),
    ],
)
def test_bad_body_is_refused_with_its_place(body, param, said) -> None:
    with pytest.raises(ControlError) as caught:
        read_body(request(body), Body)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert said in caught.value.message


def test_long_body_is_refused_before_it_is_read() -> None:
    with pytest.raises(ControlError, match="at most 10 are taken") as caught:
        read_body(request(b"x" * 11), Body, bytes_max=10)
    assert caught.value.status == 413


def test_good_body_and_query_are_read() -> None:
    assert read_body(request(b'{"slots": 3, "windows": [{"end": 4}]}'), Body) == Body(
        3, [Window(4)]
    )
    assert query_text(request(b"", "model=a%2Fb&x=1"), "model") == "a/b"
    assert query_text(request(b""), "model") == ""


class Nobody:
    """The host's parts that these routes don't touch."""

    def now_ns(self) -> int:
        return 0


@asynccontextmanager
async def open_api(path, routes: Routes):
    loop = Loop()
    nobody = Nobody()
    api = ControlApi(nobody, nobody, nobody, journal=nobody, logbook=nobody, loop=loop)
    api.add(routes)
    api.listen(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop.run)
        nursery.start_soon(api.run)
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            yield client
        nursery.cancel_scope.cancel()


@pytest.mark.sockets
async def test_routes_of_a_part_are_answered_at_once_or_later(tmp_path) -> None:
    async def work() -> object:
        await trio.lowlevel.checkpoint()
        return {"done": True}

    async def failing_work() -> object:
        await trio.lowlevel.checkpoint()
        raise ControlError(409, "it runs already; wait", param="a.b")

    routes: Routes = {
        ("GET", "/v1/things"): lambda request: Body(5),
        ("PUT", "/v1/things"): lambda request: read_body(request, Body),
        ("POST", "/v1/things"): lambda request: Later(work),
        ("POST", "/v1/wrong"): lambda request: Later(failing_work),
    }
    with trio.fail_after(20):
        async with open_api(tmp_path / "control.sock", routes) as client:
            assert (await client.get("/v1/things")).json() == {"slots": 5, "windows": []}
            assert (await client.post("/v1/things")).json() == {"done": True}
            assert (await client.delete("/v1/things")).status_code == 405
            refused = await client.put("/v1/things", content=b'{"slots": null}')
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "slots"
            later = await client.post("/v1/wrong")
            assert later.status_code == 409
            assert later.json() == {"error": {"message": "it runs already; wait", "param": "a.b"}}


def test_two_parts_with_one_route_are_a_bug() -> None:
    nobody = Nobody()
    routes: Routes = {("GET", "/v1/status"): lambda request: None}
    api = ControlApi(nobody, nobody, nobody, journal=nobody, logbook=nobody, loop=Loop())
    with pytest.raises(AssertionError, match="two parts"):
        api.add(routes)
