"""The demo's course: start, find, ask, prove, and do it again with the other host."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from p2p.errors import SparewattError
from p2p.network import NetworkInfo
from sparewatt.clients import (
    SETTLE_SECONDS_MAX,
    AskError,
    JsonApi,
    control_api,
    number,
    objects,
    text,
)
from sparewatt.demo.ask import Answer, Question, ask
from sparewatt.demo.ledger import Movement, ledger_holds, movement, read_balances
from sparewatt.demo.proof import CheckedBill, OfferPrices, check_bill, read_bill
from sparewatt.network_dir import JOIN_NAME, SETTLEMENT, HostEntry, NetworkState

FOUND_SECONDS_MAX = 60.0
PROOF_SECONDS_MAX = 20.0
LEDGER_SECONDS_MAX = 20.0
POLL_SECONDS = 0.1
AT_REST_SECONDS = 0.2  # longer than a gateway takes to pay for what has ended

ValueT = TypeVar("ValueT")


class DemoError(SparewattError):
    """Raised when the demo can't show what it promises; says what is missing."""


@dataclass(frozen=True, slots=True)
class FoundHost:
    """A host as the gateway found and measured it.

    Attributes:
        ttft_ms: Of the gateway's probe, later of its requests.
    """

    name: str
    peer_id: str
    ttft_ms: float
    tokens_per_s: float
    prices: OfferPrices


@dataclass(frozen=True, slots=True)
class Round:
    """One question, its answer, and the proof that the bill is right."""

    host: FoundHost
    reason: str
    answer: Answer
    bill: CheckedBill
    ledger: Movement
    books_hold: bool

    @property
    def is_right(self) -> bool:
        """Whether everything that the demo promises held."""
        cost = self.bill.receipt.cost_micros
        return (
            bool(self.answer.text)
            and self.bill.holds
            and self.ledger.is_balanced
            and self.ledger.debit_micros == cost
            and self.books_hold
        )


@dataclass(frozen=True, slots=True)
class Demo:
    """A running network and how to ask it things."""

    network: NetworkInfo
    state: NetworkState
    gateway: JsonApi
    settlement: JsonApi

    def find_hosts(self, model: str, say: Callable[[str], None]) -> tuple[FoundHost, ...]:
        """Return all hosts, once the gateway found and measured every one of them.

        Raises:
            DemoError: If it takes too long.
        """

        def look() -> tuple[FoundHost, ...] | None:
            known = objects(self.gateway.get("/v1/hosts"), "data")
            found = tuple(host for each in known if (host := self._found(each, model)))
            linked = sum(each.get("state") == "linked" for each in known)
            say(
                f"{len(known)} of {len(self.state.hosts)} hosts found, {linked} connected, "
                f"{len(found)} measured"
            )
            return found if len(found) == len(self.state.hosts) else None

        return _poll(look, FOUND_SECONDS_MAX, "the gateway did not find and measure every host")

    def settle(self) -> None:
        """Have every host bring its vouchers to settlement now.

        Raises:
            AskError: If a host does not answer.
        """
        for host in self.state.hosts:
            control_api(host.name, host.control_socket).post(
                "/v1/settle", within_s=SETTLE_SECONDS_MAX
            )

    def play(
        self, question: Question, hosts: Sequence[FoundHost], hear: Callable[[str], None]
    ) -> Round:
        """Ask, then prove the bill.

        Raises:
            SparewattError: If no answer, no proof, or no settlement comes.
        """
        before = self._balances_at_rest()
        answer = ask(f"{self.state.gateway.url}/v1", self.state.gateway.api_key, question, hear)
        generation, bill = self._proof(answer, hosts)
        host = _by_peer_id(hosts, bill.receipt.host_peer_id)
        moved = self._moved(before, bill.receipt.cost_micros)
        return Round(
            host=host,
            reason=text(generation, "route"),
            answer=answer,
            bill=bill,
            ledger=moved,
            books_hold=ledger_holds(self.settlement),
        )

    def _found(self, known: Mapping[str, object], model: str) -> FoundHost | None:
        peer_id = text(known, "peer_id")
        entry = next((host for host in self.state.hosts if host.peer_id == peer_id), None)
        for offer in objects(known, "models"):
            if entry and text(offer, "model_id") == model and offer.get("measured") is True:
                return _found_host(entry, offer)
        return None

    def _proof(
        self, answer: Answer, hosts: Sequence[FoundHost]
    ) -> tuple[Mapping[str, object], CheckedBill]:
        """Return the gateway's record of a request and its checked bill, once both are there."""

        def look() -> tuple[Mapping[str, object], CheckedBill] | None:
            data = self.gateway.get(f"/v1/generation?id={answer.answer_id}").get("data")
            bill = read_bill(data) if isinstance(data, dict) else None
            if bill is None or not isinstance(data, dict):
                return None
            host = _by_peer_id(hosts, text(data, "provider_name"))
            checked = check_bill(
                bill,
                network_id=self.network.network_id,
                host_peer_id=host.peer_id,
                prices=host.prices,
            )
            return data, checked

        return _poll(look, PROOF_SECONDS_MAX, "the signed receipt did not come")

    def _balances_at_rest(self) -> dict[str, int]:
        """Return the ledger once all that was paid before is posted, and nothing more comes.

        A gateway pays for what ended within a few hundred milliseconds, not at once.
        """
        seen: list[dict[str, int]] = []

        def look() -> dict[str, int] | None:
            self.settle()
            seen.append(read_balances(self.settlement))
            if self._unsettled_micros() == 0 and seen[-2:] == [seen[-1]] * 2:
                return seen[-1]
            time.sleep(AT_REST_SECONDS)
            return None

        return _poll(look, LEDGER_SECONDS_MAX, "the hosts did not settle")

    def _unsettled_micros(self) -> int:
        return sum(
            number(
                control_api(host.name, host.control_socket).get("/v1/status"),
                "earnings",
                "unsettled_micros",
            )
            for host in self.state.hosts
        )

    def _moved(self, before: Mapping[str, int], cost_micros: int) -> Movement:
        """Return what moved, once it is at least the cost of the request; more is shown as is."""

        def look() -> Movement | None:
            self.settle()
            moved = movement(before, read_balances(self.settlement))
            return moved if moved.debit_micros >= cost_micros else None

        return _poll(look, LEDGER_SECONDS_MAX, "the voucher did not reach the ledger")


def open_demo(data_dir: Path, state: NetworkState) -> Demo:
    """Return a demo on a running network."""
    from settlement.keys import operator_token

    info = NetworkInfo.from_json((data_dir / JOIN_NAME).read_text(encoding="utf-8"))
    token = operator_token(data_dir / SETTLEMENT)
    return Demo(
        network=info,
        state=state,
        gateway=JsonApi("the gateway", state.gateway.url, state.gateway.api_key),
        settlement=JsonApi("settlement", state.settlement.url, token),
    )


def _found_host(entry: HostEntry, offer: Mapping[str, object]) -> FoundHost:
    return FoundHost(
        name=entry.name,
        peer_id=entry.peer_id,
        ttft_ms=_float(offer.get("ttft_ms")),
        tokens_per_s=_float(offer.get("tokens_per_s")),
        prices=OfferPrices(
            in_micros_per_mtok=number(offer, "price_in_micros_per_mtok"),
            cached_micros_per_mtok=number(offer, "price_cached_micros_per_mtok"),
            out_micros_per_mtok=number(offer, "price_out_micros_per_mtok"),
            minimum_micros=number(offer, "minimum_micros"),
        ),
    )


def _by_peer_id(hosts: Sequence[FoundHost], peer_id: str) -> FoundHost:
    for host in hosts:
        if host.peer_id == peer_id:
            return host
    raise DemoError(f"the answer came from {peer_id}, which is no host of this network")


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _poll(look: Callable[[], ValueT | None], within_s: float, otherwise: str) -> ValueT:
    """Call ``look`` until it returns something; a process that is not up yet may fail meanwhile."""
    deadline = time.monotonic() + within_s
    while True:
        trouble = ""
        try:
            found = look()
            if found is not None:
                return found
        except AskError as error:
            trouble = f": {error}"
        if time.monotonic() > deadline:
            raise DemoError(f"{otherwise} within {within_s:.0f} s{trouble}")
        time.sleep(POLL_SECONDS)
