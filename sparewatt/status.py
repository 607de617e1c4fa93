"""What a network of this machine is doing now."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from sparewatt.builder import records_by_name
from sparewatt.clients import AskError, control_api, number, text
from sparewatt.network_dir import NetworkState, require_network
from sparewatt.options import dollars

RUNNING = "running"
STOPPED = "stopped"
COLOURS = {STOPPED: "red", "silent": "red", "refusing": "red", "starting": "yellow"}
WAITING = frozenset(("silent", "refusing", "starting"))


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process; ``pid`` is None while it is stopped."""

    name: str
    state: str
    pid: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    """A network's processes, and what its hosts say of themselves."""

    state: NetworkState
    processes: tuple[ProcessStatus, ...]
    hosts: Mapping[str, Mapping[str, object]]

    def waiting_hosts(self) -> tuple[ProcessStatus, ...]:
        """Return the hosts that run but do not serve, with what keeps each from it."""
        return tuple(process for process in self.processes if process.state in WAITING)

    @property
    def is_running(self) -> bool:
        """Whether every process runs."""
        return all(process.state != STOPPED for process in self.processes)

    def to_json(self) -> dict[str, object]:
        """Return it as ``status --json`` prints it: network.json, and what lives."""
        fields: dict[str, object] = msgspec.to_builtins(self.state)
        return {
            **fields,
            "running": self.is_running,
            "processes": msgspec.to_builtins(self.processes),
            "host_status": dict(self.hosts),
        }


def network_status(data_dir: Path) -> NetworkStatus:
    """Return what a network is doing.

    Raises:
        Problem: If there is none.
    """
    state, layout = require_network(data_dir)
    alive = {name: record.find() for name, record in records_by_name(layout).items()}
    said: dict[str, Mapping[str, object]] = {}
    for host in state.hosts:
        if alive.get(host.name):
            try:
                said[host.name] = control_api(host.name, host.control_socket).get("/v1/status")
            except AskError as error:
                said[host.name] = {"state": "silent", "state_reason": str(error)}
    details = _details(state)
    processes = tuple(
        ProcessStatus(
            name=name,
            state=(text(said.get(name, {}), "state") or RUNNING) if process else STOPPED,
            pid=process.pid if process else None,
            detail=_host_detail(said[name]) if name in said else details.get(name, ""),
        )
        for name, process in alive.items()
    )
    return NetworkStatus(state, processes, said)


def print_status(status: NetworkStatus) -> None:
    """Print a network's processes, one a line; addresses stay whole, to be copied."""
    rows = [("process", "state", "pid", "")]
    rows += [
        (process.name, process.state, str(process.pid or "—"), process.detail)
        for process in status.processes
    ]
    names, states, pids = (max(len(row[column]) for row in rows) for column in range(3))
    for index, (name, state, pid, detail) in enumerate(rows):
        colour = COLOURS.get(state, "green") if index else None
        styled = click.style(f"{state:<{states}}", fg=colour)
        click.echo(f"{name:<{names}}  {styled}  {pid:<{pids}}  {detail}".rstrip())


def _details(state: NetworkState) -> dict[str, str]:
    details = {"gateway": f"{state.gateway.url}/v1", "settlement": state.settlement.url}
    for index, relay in enumerate(state.relays):
        details[f"relay-{index + 1}"] = relay.multiaddr
    return details


def _host_detail(said: Mapping[str, object]) -> str:
    if text(said, "state") in WAITING:
        return text(said, "state_reason")
    busy, total = number(said, "slots", "busy"), number(said, "slots", "total")
    earned = dollars(number(said, "earnings", "total_micros"))
    model = text(said, "engine", "model_id")
    return f"{model}  {busy}/{total} slots  earned ${earned}"
