"""The whole market on a virtual clock, seed after seed; and that it finds what it is to find.

A simulation that can't fail says nothing. So each test of the second part takes one check out of
the product, and the simulation must name the law that then breaks.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from sim_bounds import GATEWAY_BOUNDS, HOST_BOUNDS
from sim_cheats import GATEWAY_CHEATS, HOST_CHEATS
from sim_world import Rules, SimulationFailedError, World, run_world

from p2p.receipts import counting, tab
from p2p.receipts.openings import Gate
from p2p.receipts.purse import Purse
from p2p.receipts.tab import Customer
from p2p.session import Session
from peer.gateway import dispatch, routing
from peer.gateway.attempt import Attempt
from peer.gateway.books import Books
from peer.gateway.journal import Journal
from settlement import ledger

HERE = Path(__file__).parent
SOAK = HERE / "sim_soak.py"
DOCS = HERE.parent.parent / "docs" / "cheats.md"
# CI runs 100 seeds, `make test` a few of them, `make soak` 10,000.
SEEDS_COUNT = 100 if settings.get_current_profile_name() in ("ci", "explore") else 5
TRIES_COUNT_MAX = 12


def soak(*arguments: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    """Run the soak as a process of its own, as a person would."""
    return subprocess.run(
        [sys.executable, SOAK, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={"PYTHONHASHSEED": hash_seed, "PATH": "/usr/bin:/bin"},
    )


def test_market_keeps_every_law_for_all_seeds() -> None:
    done = soak("--seeds", str(SEEDS_COUNT))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_market_same_seed_is_the_same_run_in_any_process_and_another_is_another() -> None:
    traces = [
        re.findall(
            r"trace (\w{64})", soak("--first", first, "--seeds", "1", hash_seed=chance).stdout
        )
        for first, chance in (("3", "1"), ("3", "2"), ("4", "1"))
    ]
    assert traces[0]
    assert traces[0] == traces[1] != traces[2]


# -- it finds what is broken -----------------------------------------------------------------------


def failure_of(seed: int, rules: Rules) -> str:
    """Return how a run failed, or an empty text."""
    try:
        run_world(seed, rules)
    except SimulationFailedError as failed:
        return str(failed)
    return ""


def find(rules: Rules, law: str) -> str:
    """Run seeds until one breaks; it must be by this law."""
    for seed in range(TRIES_COUNT_MAX):
        told = failure_of(seed, rules)
        if told:
            assert re.search(law, told), told
            return told
    pytest.fail(f"{TRIES_COUNT_MAX} seeds did not break: {law}")


def quiet(
    *,
    hosts: tuple[str, ...] = (),
    gateways: tuple[str, ...] = (),
    troubles: tuple[str, ...] = (),
    requests: int = 8,
    before: Callable[[World], None] = lambda world: None,
) -> Rules:
    """Return rules under which nothing happens but what is asked for."""
    return Rules(
        host_cheats=hosts,
        gateway_cheats=gateways,
        troubles=troubles,
        requests=requests,
        before=before,
    )


def test_simulation_finds_a_host_that_trusts_without_bound(monkeypatch) -> None:
    monkeypatch.setattr(Customer, "_gate", lambda self, held, cost: Gate.OPEN)
    find(quiet(gateways=("no-sign",)), r"unpaid at host-0, at most|no-sign: gained")


def test_simulation_finds_a_host_that_forgives_dead_links_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(Customer, "_lost_too_much", lambda self, quote: False)
    find(quiet(gateways=("vanish-prefill",), requests=150), "vanish-prefill: gained")


def test_simulation_finds_a_gateway_that_believes_every_count(monkeypatch) -> None:
    honest = counting.Count.chunk
    monkeypatch.setattr(
        counting.Count, "chunk", lambda self, count_bytes, tokens: honest(self, 10**6, tokens)
    )
    find(
        quiet(hosts=("under-deliver", "under-deliver")), "vouched for, .* at most can have been got"
    )


def test_simulation_finds_a_gateway_that_believes_every_cost(monkeypatch) -> None:
    honest = counting.Count.receipt

    def receipt(self, receipt):  # type: ignore[no-untyped-def]
        refusal = honest(self, receipt)
        is_cost = refusal is not None and refusal.fault is counting.CountFault.COST
        self.is_refused = self.is_refused and not is_cost
        return None if is_cost else refusal

    monkeypatch.setattr(counting.Count, "receipt", receipt)
    find(quiet(hosts=("price-change", "price-change")), "vouched for|price-change: gained")


def test_simulation_finds_a_gateway_that_pays_disputed_receipts_after_a_crash(monkeypatch) -> None:
    honest = Journal.put_batch
    monkeypatch.setattr(
        Journal,
        "put_batch",
        lambda self, *args, durable, disputed: honest(self, *args, durable=durable),
    )
    rules = quiet(hosts=("price-change",) * 2, troubles=("gateway-crash",), requests=12)
    find(rules, "vouched for|price-change: gained")


def test_simulation_finds_a_gateway_that_waits_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(dispatch.Dispatcher, "_check_silence", lambda self, attempt, now_ns: None)
    find(quiet(hosts=("stall",)), "a request hangs")


def test_simulation_finds_a_gateway_that_takes_any_price(monkeypatch) -> None:
    monkeypatch.setattr(routing, "_is_dearer", lambda quote, offer: False)
    find(quiet(hosts=("price-change", "price-change")), "dearer than the record")


def test_simulation_finds_a_token_that_comes_twice(monkeypatch) -> None:
    honest = Attempt._pass_on

    def pass_on(self, shown, credit_bytes):  # type: ignore[no-untyped-def]
        honest(self, shown + shown if self.tokens == 0 else shown, credit_bytes)

    monkeypatch.setattr(Attempt, "_pass_on", pass_on)
    find(quiet(), "lost or doubled a token")


def test_simulation_finds_a_cut_connection_that_loses_tokens(monkeypatch) -> None:
    honest = Session.resume

    def resume(self, received_bytes, now_ns):  # type: ignore[no-untyped-def]
        honest(self, received_bytes, now_ns)
        self._state.replay = b""

    monkeypatch.setattr(Session, "resume", resume)
    # Whoever reads the wire sees that the frames do not go on where they ended.
    find(quiet(troubles=("lose",), requests=40), "a batch (claims|is not|holds)|lost or doubled")


def test_simulation_finds_a_host_whose_disk_lies(monkeypatch) -> None:
    def lie(world: World) -> None:
        for host in world.hosts:
            host.process.disk.lies = True

    find(quiet(troubles=("host-crash",), before=lie), "was not on its disk")


def test_simulation_finds_a_gateway_that_sends_vouchers_before_they_are_on_disk(
    monkeypatch,
) -> None:
    monkeypatch.setattr(Journal, "put_voucher", lambda self, voucher, *, durable: durable())
    # Else the host's hello would tell it what it has forgotten.
    monkeypatch.setattr(Purse, "restore", lambda self, voucher, allowance: False)
    find(quiet(troubles=("gateway-crash",)), "contradicts itself")


def test_simulation_finds_books_that_round_each_voucher_alone(monkeypatch) -> None:
    honest = ledger.fee_micros
    monkeypatch.setattr(ledger, "fee_micros", lambda cum, bps: honest(cum, bps) // 3 * 3)
    find(quiet(), "ledger is not right|host and fee")


def test_simulation_finds_books_that_depend_on_the_order(monkeypatch) -> None:
    honest = ledger.present_voucher

    def present(state, voucher, *, same_sequence, now_ns):  # type: ignore[no-untyped-def]
        """Take the last word for the highest."""
        effect = honest(state, voucher, same_sequence=same_sequence, now_ns=now_ns)
        last = effect.change.state._replace(sequence=voucher.value.sequence)
        change = msgspec.structs.replace(effect.change, state=last)
        return msgspec.structs.replace(effect, change=change)

    monkeypatch.setattr(ledger, "present_voucher", present)
    find(quiet(requests=12), "another order")


def test_simulation_finds_a_gateway_that_believes_settlement_never_forgets(monkeypatch) -> None:
    def forget_at_last(world: World) -> None:
        """Let settlement lose all allowances when everything is posted and nothing new comes."""
        stop = world._stop

        async def stop_after_a_restore() -> None:
            for gateway in world.gateways:
                await gateway.process.books.submit()
            world.settlement.restore()
            await stop()

        world._stop = stop_after_a_restore

    async def nothing(self) -> None:  # type: ignore[no-untyped-def]
        pass

    rules = quiet(before=forget_at_last)
    assert failure_of(0, rules) == ""
    monkeypatch.setattr(Books, "_look_back", nothing)
    assert "a voucher was never settled" in failure_of(0, rules)


def test_simulation_asks_nothing_of_a_gateway_that_is_dying() -> None:
    """Its clients' connections broke with it: what came later would never be answered."""
    were_up = []

    def break_off(world: World) -> None:
        for gateway in world.gateways:
            die = gateway.process.died

            def died(process=gateway.process, die=die) -> None:  # type: ignore[no-untyped-def]
                were_up.append(process.is_up)
                die()

            gateway.process.died = died

    run_world(1, quiet(troubles=("gateway-crash",), requests=3, before=break_off))
    assert were_up
    assert not any(were_up)


# -- the table ---------------------------------------------------------------------------------


def test_cheats_each_has_its_bound_and_its_row_in_the_docs() -> None:
    assert set(HOST_BOUNDS) == {*HOST_CHEATS, ""}
    assert set(GATEWAY_BOUNDS) == {*GATEWAY_CHEATS, ""}
    rows = DOCS.read_text().splitlines()
    for name, bound in (*HOST_BOUNDS.items(), *GATEWAY_BOUNDS.items()):
        row = f"| {name or 'none'} | {bound.does} | {bound.gains} | {bound.check} |"
        assert row in rows


def test_failing_seed_prints_itself_its_last_events_and_how_to_replay_it(monkeypatch) -> None:
    monkeypatch.setattr(tab.Customer, "_gate", lambda self, held, cost: Gate.OPEN)
    told = find(quiet(gateways=("no-sign",)), "seed")
    assert re.search(r"^seed \d+:", told)
    assert "host-0 -> gateway-" in told
    assert re.search(
        r"^replay: python tests/sim/sim_soak.py --first \d+ --seeds 1$", told, re.MULTILINE
    )
