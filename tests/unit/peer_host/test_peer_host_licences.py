"""A model whose terms nobody accepted is not announced; who accepted what, and when, is kept."""

import json
import stat
from pathlib import Path

import pytest
import trio
from host_kit import FREE, MODEL, PRICES, body, open_world
from hub_kit import open_hub
from test_peer_host_fleet import announced, load, open_control, quoted

from p2p.errors import DataDirectoryError, ErrorCode
from p2p.types import ModelId
from peer.host.config import FakeSpec, HostedEngine, LlamacppSpec, OpenAiSpec
from peer.host.config_values import hosted_engine
from peer.host.consents import ConsentBook, ConsentFileError, StaleConsentError
from peer.host.control_models import ModelControl
from peer.host.engines.fake import FakeEngine
from peer.host.engines.fleet import Fleet
from peer.host.licences import Found, How
from peer.host.store.digests import ModelDigests
from peer.host.store.hub_plan import HubAccess

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
RESEARCH = "Qwen/Qwen2.5-3B-Instruct"
QWEN = "Qwen/Qwen3-8B"
NOW_NS = 1_700_000_000 * 10**9


def open_book(tmp_path, **more: bool) -> ConsentBook:
    return ConsentBook(tmp_path / "licences.json", lambda: NOW_NS, **more)


def hosting(model_id: str, licence: str = "unknown", **more: object) -> HostedEngine:
    spec = OpenAiSpec(url="http://127.0.0.1:1/v1", model_id=ModelId(model_id))
    return HostedEngine(name="real", spec=spec, licence=licence, **{"prices": PRICES, **more})


def accept(book: ConsentBook, model_id: str, licence: str) -> None:
    book.accept(model_id, licence, text_sha256=book.knowledge.digest(model_id, licence))


def test_terms_that_bind_wait_for_the_owner_who_is_told_what_to_do(tmp_path):
    book = open_book(tmp_path)
    verdict = book.judge(hosting(LLAMA), LLAMA)
    assert f"sparewatt models accept {LLAMA}" in verdict.refusal
    accept(book, LLAMA, "llama3.1")
    verdict = book.judge(hosting(LLAMA), LLAMA.lower())
    assert verdict.refusal == ""
    assert verdict.licence == "llama3.1 (Built with Llama)"


def test_consent_is_on_disk_with_digest_and_time_for_its_owner_only(tmp_path):
    accept(open_book(tmp_path), LLAMA, "llama3.1")
    path = tmp_path / "licences.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (kept,) = json.loads(path.read_text())
    book = open_book(tmp_path)
    assert kept == {
        "model_id": LLAMA,
        "licence": "llama3.1",
        "text_sha256": book.knowledge.digest(LLAMA, "llama3.1"),
        "accepted_at_ns": NOW_NS,
        "how": "owner",
    }
    assert book.judge(hosting(LLAMA), LLAMA).refusal == ""


def test_permissive_terms_need_no_yes_and_are_kept_as_such(tmp_path):
    book = open_book(tmp_path)
    assert book.judge(hosting(QWEN), QWEN).refusal == ""
    (consent,) = book.consents
    assert (consent.licence, consent.how) == ("Apache-2.0", How.TERMS)


def test_catalogue_knows_a_models_licence_better_than_its_owner(tmp_path):
    book = open_book(tmp_path)
    assert book.judge(hosting(LLAMA, licence="MIT"), LLAMA).refusal
    assert book.judge(hosting("me/mine", licence="MIT"), "me/mine").refusal == ""


def test_terms_that_nobody_knows_need_a_yes(tmp_path):
    book = open_book(tmp_path)
    assert "accept me/mine" in book.judge(hosting("me/mine"), "me/mine").refusal
    accept(book, "me/mine", "unknown")
    assert book.judge(hosting("me/mine"), "me/mine").refusal == ""
    assert book.judge(hosting("me/mine", licence="mine-1.0"), "me/mine").refusal


def test_non_commercial_terms_forbid_a_price_even_when_accepted(tmp_path):
    book = open_book(tmp_path)
    accept(book, RESEARCH, "qwen-research")
    assert "price to 0" in book.judge(hosting(RESEARCH), RESEARCH).refusal
    assert book.judge(hosting(RESEARCH, prices=FREE), RESEARCH).refusal == ""


def test_consent_to_another_text_is_none(tmp_path):
    book = open_book(tmp_path)
    with pytest.raises(StaleConsentError):
        book.accept(LLAMA, "llama3.1", text_sha256="0" * 64)
    accept(book, LLAMA, "llama3.1")
    path = tmp_path / "licences.json"
    path.write_text(path.read_text().replace(book.knowledge.digest(LLAMA, "llama3.1"), "0" * 64))
    assert open_book(tmp_path).judge(hosting(LLAMA), LLAMA).refusal


def test_host_that_was_told_so_accepts_what_it_is_told_to_serve(tmp_path):
    book = open_book(tmp_path, accepts_all=True)
    assert book.judge(hosting(LLAMA), LLAMA).refusal == ""
    assert "price to 0" in book.judge(hosting(RESEARCH), RESEARCH).refusal
    assert {consent.how for consent in book.consents} == {How.FLAG}


def test_withdrawn_consent_is_gone(tmp_path):
    book = open_book(tmp_path)
    accept(book, LLAMA, "llama3.1")
    version = book.version
    assert book.withdraw(LLAMA.upper()) == 1
    assert book.version > version
    assert open_book(tmp_path).judge(hosting(LLAMA), LLAMA).refusal


@pytest.mark.parametrize("text", ["{", "[1]", '[{"model_id": "x"}]', "\xff", "[" * 100_000])
def test_damaged_file_of_consents_is_named(tmp_path, text: str):
    (tmp_path / "licences.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConsentFileError, match=r"licences\.json is damaged"):
        open_book(tmp_path)


def test_host_that_cannot_keep_a_consent_goes_on_and_says_so(tmp_path):
    book = ConsentBook(tmp_path / "gone" / "licences.json", lambda: NOW_NS)
    assert "no consent" in book.judge(hosting(QWEN), QWEN).refusal
    with pytest.raises(DataDirectoryError):
        accept(book, LLAMA, "llama3.1")


def test_statement_is_the_same_whatever_the_case_and_digests_as_shown(tmp_path):
    knowledge = open_book(tmp_path).knowledge
    assert knowledge.statement(LLAMA, "llama3.1") == knowledge.statement(LLAMA.lower(), "LLAMA3.1")
    for each in ("Acceptable", "700 million", "Built with Llama", "https://"):
        assert each.lower() in knowledge.statement(LLAMA, "llama3.1").lower()


@pytest.mark.sockets
async def test_model_is_announced_once_its_terms_are_accepted_and_not_before(tmp_path) -> None:
    async with open_world(tmp_path) as world, open_control(world) as control:
        world.make_engine_now = lambda hosted: FakeEngine(FakeSpec(model_id=ModelId(LLAMA)))
        await load(control, hosting(LLAMA))
        status = (await control.get("/v1/status")).json()
        assert "sparewatt models accept" in status["engines"][1]["detail"]
        assert [offer["model_id"] for offer in status["offers"]] == [MODEL]
        shown = (await control.get("/v1/licences", params={"model": LLAMA})).json()
        assert shown["accepted"] is False
        said = {"model_id": LLAMA, "text_sha256": shown["text_sha256"]}
        wrong = await control.post("/v1/licences/accept", json={**said, "text_sha256": "0" * 64})
        assert wrong.status_code == 409
        assert LLAMA not in world.gateway.quotes
        assert (await control.post("/v1/licences/accept", json=said)).json()["ok"] is True
        await quoted(world, LLAMA)
        await announced(world, MODEL, LLAMA)
        assert world.record().offers[1].licence == "llama3.1 (Built with Llama)"
        models = (await control.get("/v1/models")).json()["models"]
        assert {each["id"] for each in models if each["accepted"]} >= {LLAMA, QWEN}
        await control.post("/v1/licences/withdraw", json={"model_id": LLAMA})
        await announced(world, MODEL)
        world.gateway.model_id = LLAMA
        refused = world.gateway.ask(body(model=LLAMA), world.gateway.allow())
        await refused.over.wait()
        assert refused.error.code is ErrorCode.MODEL_NOT_FOUND


@pytest.mark.sockets
async def test_host_fetches_a_model_at_its_owners_wish_and_tells_how_far_it_is(tmp_path) -> None:
    weights = b"GGUF" + bytes(100_000)
    name = "Qwen3-8B-Q4_K_M.gguf"
    with open_hub({name: weights}, repo="Qwen/Qwen3-8B-GGUF") as hub:
        hub.gate.clear()
        access = HubAccess(hub.url, "hf_secret")
        async with open_world(tmp_path, hub=access) as world, open_control(world) as control:
            wish = {"model_id": QWEN, "format": "gguf"}
            begun = (await control.post("/v1/models/fetch", json=wish)).json()["fetch"]
            assert begun["state"] == "running"
            again = (await control.post("/v1/models/fetch", json=wish)).json()["fetch"]
            assert again["state"] == "running"
            stopped = await control.post("/v1/models/cancel", json={"model_id": QWEN})
            assert stopped.json()["cancelled"] == 1
            hub.gate.set()
            await control.post("/v1/models/fetch", json=wish)
            for _ in range(500):
                models = (await control.get("/v1/models")).json()
                (fetch,) = models["fetches"]
                if fetch["state"] != "running":
                    break
                await trio.sleep(0.02)
            assert (fetch["state"], fetch["done_bytes"]) == ("done", len(weights))
            shown = {each["id"]: each for each in models["models"]}
            assert shown[QWEN]["folder"] == fetch["detail"]
            loads = hosted_engine(shown[QWEN]["engine"])
            assert (loads.name, loads.prices) == ("qwen3-8b", PRICES)
            assert loads.spec.model == Path(fetch["detail"]) / name
            assert shown[LLAMA]["engine"] is None
            assert shown[LLAMA]["weights_bytes"] > 4e9
            assert shown[QWEN]["tokens_per_s"] > 0
            assert "hf_secret" not in (await control.get("/v1/log")).text
            for wrong, status in (
                ({"model_id": "me/mine"}, 404),
                ({"model_id": LLAMA, "format": "zip"}, 404),
                ({"model": LLAMA}, 400),
            ):
                answer = await control.post("/v1/models/fetch", json=wrong)
                assert answer.status_code == status


# -- other names for what has terms ----------------------------------------------------------------

GEMMA_SHA256 = bytes.fromhex("a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818")
DEMO_SHA256 = bytes.fromhex("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")


@pytest.mark.parametrize("model_id", ["me/mine", QWEN, LLAMA])
@pytest.mark.parametrize(
    ("found", "licence"),
    [
        (Found(weights_sha256=GEMMA_SHA256), "gemma"),
        (Found(licence="gemma"), "gemma"),
        (Found(licence="Gemma"), "gemma"),
        (Found(names=("mine", "google/gemma-3-270m")), "gemma"),
        (Found(names=(RESEARCH.lower(),)), "qwen-research"),
        (Found(weights_sha256=GEMMA_SHA256, licence="mit"), "gemma"),
    ],
)
def test_other_name_does_not_take_a_model_from_under_its_terms(tmp_path, model_id, found, licence):
    book = open_book(tmp_path)
    hosted = hosting(model_id, licence="MIT", prices=FREE)
    accept(book, LLAMA, "llama3.1")
    assert "are not accepted" in book.judge(hosted, model_id, found).refusal
    accept(book, model_id, licence)
    verdict = book.judge(hosted, model_id, found)
    assert verdict.refusal == ""
    assert verdict.licence.startswith(licence)


def test_research_model_under_another_name_is_not_served_for_money(tmp_path):
    book = open_book(tmp_path)
    accept(book, "me/mine", "qwen-research")
    found = Found(names=(RESEARCH,))
    assert "price to 0" in book.judge(hosting("me/mine", licence="MIT"), "me/mine", found).refusal


@pytest.mark.parametrize("found", [Found(licence="mit"), Found(weights_sha256=DEMO_SHA256)])
def test_file_can_not_loosen_terms_by_what_it_says(tmp_path, found):
    book = open_book(tmp_path)
    assert book.judge(hosting(LLAMA), LLAMA, found).refusal
    assert book.judge(hosting("me/mine", licence="their own"), "me/mine", found).refusal
    assert book.judge(hosting("me/mine"), "me/mine", found).refusal == ""  # nobody said anything


async def test_file_of_terms_under_a_name_of_none_waits_for_its_owner(tmp_path) -> None:
    class Digester:
        async def digest(self, model, *, template=""):
            return ModelDigests(GEMMA_SHA256, b"", b"")

    spec = LlamacppSpec(model=tmp_path / "mine.bin", model_id=ModelId("me/mine"))
    hosted = HostedEngine(name="real", spec=spec, licence="MIT", prices=PRICES)
    book = open_book(tmp_path)
    engine = FakeEngine(FakeSpec(model_id=ModelId("me/mine")), idle_s=20)
    fleet = Fleet((hosted,), lambda _: engine, load_s=60, gate=book, digester=Digester())
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.run)
            await fleet.members["real"].wait_outcome()
            assert fleet.offered == ()
            assert "sparewatt models accept me/mine" in fleet.withheld
            control = ModelControl(book, fleet, None, None)
            assert control._licence_of("me/mine", "unknown") == "gemma"
            accept(book, "me/mine", "gemma")
            assert [each.offer.model_id for each in fleet.offered] == ["me/mine"]
            nursery.cancel_scope.cancel()
