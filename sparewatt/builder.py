"""A whole network on this machine: made, started, widened and stopped.

Everything that the processes must know of each other (keys, ports, the network file, enrolment
codes) is made before the first of them starts, so that all can start at once.
"""

import contextlib
import secrets
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from p2p.keys import load_or_create_key, lock_data_directory
from p2p.network import NetworkInfo
from p2p.paths import make_private_directory, write_private
from p2p.types import ModelId, NetworkId, PublicKey
from sparewatt import network_dir
from sparewatt.clients import AskError, JsonApi, control_api, objects, text
from sparewatt.engines import offered_models
from sparewatt.network_dir import (
    GATEWAY,
    JOIN_NAME,
    LAYOUT_NAME,
    LOGS_NAME,
    NETWORK_NAME,
    RELAYS,
    SECRETS_NAME,
    SETTLEMENT,
    Account,
    GatewayEntry,
    HostEntry,
    HostPlan,
    Layout,
    NetworkState,
    RelayEntry,
    Secrets,
    SettlementEntry,
)
from sparewatt.ports import LOOPBACK, Ports, is_free
from sparewatt.problems import Problem
from sparewatt.processes import ProcessRecord, Started, spawn, stop, wait_ready

CREDIT_MICROS = 10_000_000
READY_SECONDS_MAX = 120.0
VLLM_READY_SECONDS_MAX = 900.0  # it takes one to ten minutes to load
FOUND_SECONDS_MAX = 30.0
FOUND_POLL_SECONDS = 0.2
GATEWAY_STOP_SECONDS = 2.0
HOST_STOP_SECONDS = 6.0
REST_STOP_SECONDS = 1.5
KEY_NAME = "node.key"
CODE_NAME = "enrol-code"
ENGINE_FAILED = "failed"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """A network of this machine.

    Attributes:
        say: Told what is being done, for people.
        dies_with_us: Whether the processes must not outlive this one.
    """

    data_dir: Path
    say: Say
    dies_with_us: bool = False

    def up(self, hosts: Sequence[HostPlan], *, base_port: int | None) -> NetworkState:
        """Start a network; make it first if there is none; of one in part, start what ended.

        Args:
            hosts: For a new network; an existing one keeps its own.
            base_port: Ports count up from here; None takes free ones.

        Raises:
            Problem: If all of it runs already, or a process does not come up.
        """
        make_private_directory(self.data_dir)
        with lock_data_directory(self.data_dir):
            layout = network_dir.read_layout(self.data_dir)
            if layout is None:
                network_id = f"local-{secrets.token_hex(4)}"
                layout = Layout(network_id=network_id, base_port=base_port, hosts=tuple(hosts))
            elif any(record.find() for record in layout.processes):
                return self._mend(layout)
            layout = replace(layout, base_port=base_port or layout.base_port, processes=())
            try:
                return self._start(layout)
            except BaseException:
                self._stop(network_dir.read_layout(self.data_dir))
                raise

    def add(self, plan: HostPlan) -> HostEntry:
        """Start one more host in a running network.

        Raises:
            Problem: If the network is down, the name is taken, or the host does not come up.
        """
        state, layout = network_dir.require_network(self.data_dir)
        with lock_data_directory(self.data_dir):
            if plan.name in {host.name for host in layout.hosts}:
                raise Problem(f"there is a host {plan.name} already", "choose another --name")
            if not any(record.find() for record in layout.processes):
                raise Problem(
                    f"the network in {self.data_dir} is down",
                    f"sparewatt up --data {shlex.quote(str(self.data_dir))}",
                )
            kept = network_dir.read_secrets(self.data_dir)
            assert kept is not None
            owner = self._join_host(plan.name)
            kept = Secrets(kept.api_key, kept.client, {**kept.owners, plan.name: owner})
            network_dir.write_json(self.data_dir / SECRETS_NAME, kept)
            started = self._spawn_host(plan, 0)
            ready = self._wait([started], [plan])
            entry = _host_entry(plan, ready[plan.name])
            layout = replace(
                layout,
                hosts=(*layout.hosts, plan),
                processes=(*layout.processes, started.record),
            )
            state = replace(state, hosts=(*state.hosts, entry))
            network_dir.write_json(self.data_dir / LAYOUT_NAME, layout)
            network_dir.write_json(self.data_dir / NETWORK_NAME, state)
            self._wait_found(state, [entry])
            return entry

    def down(self) -> tuple[str, ...]:
        """Stop the network and return the names of processes that had to be killed.

        Raises:
            Problem: If there is none.
        """
        state, layout = network_dir.require_network(self.data_dir)
        with lock_data_directory(self.data_dir):
            killed = self._stop(layout)
            network_dir.write_json(self.data_dir / NETWORK_NAME, _without_pids(state))
        return killed

    def halt(self) -> tuple[str, ...]:
        """End whatever of the network runs, at once and whoever else uses the directory.

        Returns:
            The names of processes that had to be killed.
        """
        return self._stop(network_dir.read_layout(self.data_dir))

    # -- making ---------------------------------------------------------------------------------

    def _start(self, layout: Layout) -> NetworkState:
        # Whoever joined by the network file finds settlement and relays again after a restart.
        ports = Ports(layout.base_port, _ports_of(network_dir.read_network_json(self.data_dir)))
        port_of = {name: ports.take(name) for name in (SETTLEMENT, GATEWAY, *RELAYS)}
        host_ports = [ports.take(plan.name) if layout.base_port else 0 for plan in layout.hosts]
        multiaddrs = self._prepare(layout, port_of)
        self._prepare_accounts(layout.hosts)
        started = [self._spawn_settlement(port_of[SETTLEMENT])]
        started += [self._spawn_relay(name, port_of[name]) for name in RELAYS]
        started.append(self._spawn_gateway(port_of[GATEWAY]))
        for plan, port in zip(layout.hosts, host_ports, strict=True):
            started.append(self._spawn_host(plan, port))
        layout = replace(layout, processes=tuple(each.record for each in started))
        network_dir.write_json(self.data_dir / LAYOUT_NAME, layout)
        ready = self._wait(started, layout.hosts)
        state = self._state(layout, ready, multiaddrs)
        network_dir.write_json(self.data_dir / NETWORK_NAME, state)
        self._wait_found(state, state.hosts)
        return state

    def _mend(self, layout: Layout) -> NetworkState:
        """Start those processes again that ended, where the others expect them."""
        state = network_dir.read_network_json(self.data_dir)
        ended = {record.name for record in layout.processes if record.find() is None}
        if not ended:
            raise _running_problem(self.data_dir)
        if state is None:
            raise _half_made_problem(self.data_dir, ended)
        started = [self._spawn_again(name, state, layout) for name in sorted(ended)]
        fresh = {each.record.name: each.record for each in started}
        records = tuple(fresh.get(record.name, record) for record in layout.processes)
        network_dir.write_json(self.data_dir / LAYOUT_NAME, replace(layout, processes=records))
        state = _with_ready(state, layout, self._wait(started, layout.hosts))
        network_dir.write_json(self.data_dir / NETWORK_NAME, state)
        self._wait_found(state, state.hosts)
        return state

    def _spawn_again(self, name: str, state: NetworkState, layout: Layout) -> Started:
        port = _ports_of(state).get(name, 0)
        if name == SETTLEMENT:
            return self._spawn_settlement(port)
        if name == GATEWAY:
            return self._spawn_gateway(port)
        if name in RELAYS:
            return self._spawn_relay(name, port)
        index = next(i for i, plan in enumerate(layout.hosts) if plan.name == name)
        in_row = layout.base_port + 2 + len(RELAYS) + index if layout.base_port else 0
        port = in_row if in_row and is_free(in_row) else 0  # the DHT tells where a host is now
        return self._spawn_host(layout.hosts[index], port)

    def _prepare(self, layout: Layout, port_of: Mapping[str, int]) -> dict[str, str]:
        """Make the keys and the network file; return the relays' addresses."""
        from settlement.keys import init_network

        self.say("making keys and the network file")
        make_private_directory(self.data_dir / LOGS_NAME)
        network_id = NetworkId(layout.network_id)
        root_key = PublicKey(init_network(self.data_dir / SETTLEMENT, network_id).root_key)
        multiaddrs = {}
        for name in RELAYS:
            make_private_directory(self.data_dir / name)
            peer_id = load_or_create_key(self.data_dir / name / KEY_NAME).peer_id
            multiaddrs[name] = f"/ip4/{LOOPBACK}/tcp/{port_of[name]}/p2p/{peer_id}"
        info = NetworkInfo(
            network_id=network_id,
            root_key=root_key,
            settlement_url=f"http://{LOOPBACK}:{port_of[SETTLEMENT]}",
            bootstrap=tuple(multiaddrs.values()),
            models=tuple(ModelId(name) for name in _models(layout.hosts)),
        )
        write_private(self.data_dir / JOIN_NAME, info.to_json())
        return multiaddrs

    def _prepare_accounts(self, hosts: Sequence[HostPlan]) -> None:
        """Make the accounts, the client's credit, the enrolment codes and the API key, once."""
        from p2p.clock import system_clock
        from peer.gateway.keys import new_key
        from settlement.admin import add_account, credit

        if network_dir.read_secrets(self.data_dir) is not None:
            return
        self.say("opening accounts")
        ledger = self.data_dir / SETTLEMENT
        client = Account(*add_account(ledger, "client"))
        credit(ledger, client.account_id, CREDIT_MICROS, credit_id="first-credit")
        self._write_code(GATEWAY, client.account_id, "gateway")
        owners = {plan.name: self._join_host(plan.name) for plan in hosts}
        made = new_key(self.data_dir / GATEWAY, "first", now_ns=system_clock())
        kept = Secrets(made.key, client, owners)
        network_dir.write_json(self.data_dir / SECRETS_NAME, kept)

    def _join_host(self, name: str) -> Account:
        from settlement.admin import add_account

        account = Account(*add_account(self.data_dir / SETTLEMENT, f"owner of {name}"))
        self._write_code(name, account.account_id, "host")
        return account

    def _write_code(self, name: str, account_id: str, role: str) -> None:
        from settlement.admin import enrolment_code

        make_private_directory(self.data_dir / name)
        code = enrolment_code(self.data_dir / SETTLEMENT, account_id, role)
        write_private(self.data_dir / name / CODE_NAME, code + "\n")

    # -- processes ------------------------------------------------------------------------------

    def _spawn(self, name: str, arguments: Sequence[str]) -> Started:
        directory = self.data_dir / name
        return spawn(
            name,
            [*arguments, "--data", str(directory)],
            data_dir=directory,
            log=self.data_dir / LOGS_NAME / f"{name}.log",
            dies_with_us=self.dies_with_us,
        )

    def _spawn_settlement(self, port: int) -> Started:
        where = ["--bind", LOOPBACK, "--port", str(port)]
        return self._spawn(SETTLEMENT, ["settlement", "serve", *where])

    def _spawn_relay(self, name: str, port: int) -> Started:
        return self._spawn(name, ["relay", *self._join(), *_listen(port)])

    def _spawn_gateway(self, port: int) -> Started:
        where = ["--bind", LOOPBACK, "--port", str(port)]
        return self._spawn(GATEWAY, ["gateway", *self._join(), *self._code(GATEWAY), *where])

    def _spawn_host(self, plan: HostPlan, port: int) -> Started:
        price = f"{plan.price}"
        # A network of this machine is for trying: nobody else is served, and nobody to be kept out.
        arguments = ["--engine", str(plan.engine), "--price", price, "--accept-licences"]
        arguments += ["--sandbox", "native"]
        if plan.slots:
            arguments += ["--slots", str(plan.slots)]
        if plan.model_id:
            arguments += ["--model-id", plan.model_id]
        if plan.threads:
            arguments += ["--threads", str(plan.threads)]
        common = [*self._join(), *self._code(plan.name), *_listen(port)]
        return self._spawn(plan.name, ["host", *common, *arguments])

    def _join(self) -> list[str]:
        return ["--network", str(self.data_dir / JOIN_NAME)]

    def _code(self, name: str) -> list[str]:
        path = self.data_dir / name / CODE_NAME
        return ["--enrol-code-file", str(path)] if path.exists() else []

    def _wait(
        self, started: Sequence[Started], hosts: Sequence[HostPlan] = ()
    ) -> dict[str, Mapping[str, object]]:
        is_slow = any(plan.engine.kind == "vllm" for plan in hosts)
        ready = wait_ready(
            started,
            within_s=VLLM_READY_SECONDS_MAX if is_slow else READY_SECONDS_MAX,
            say=lambda missing: self.say(f"waiting for {missing}" if missing else "all are up"),
        )
        for each in started:  # a code is good once
            (self.data_dir / each.record.name / CODE_NAME).unlink(missing_ok=True)
        return ready

    def _wait_found(self, state: NetworkState, hosts: Sequence[HostEntry]) -> None:
        """Wait until the gateway is connected to hosts, so that the first request finds them.

        It is no error if that takes long: the gateway goes on looking. A host whose engine does
        not answer is not waited for: it announces nothing.
        """
        gateway = JsonApi("the gateway", state.gateway.url, state.gateway.api_key)
        deadline = time.monotonic() + FOUND_SECONDS_MAX
        missing = {host.peer_id for host in hosts}
        while missing and time.monotonic() < deadline:
            self.say(f"waiting for the gateway to find {len(missing)} of {len(hosts)} hosts")
            time.sleep(FOUND_POLL_SECONDS)
            with contextlib.suppress(AskError):
                known = objects(gateway.get("/v1/hosts"), "data")
                missing -= {text(host, "peer_id") for host in known if _is_linked(host)}
            missing -= {
                host.peer_id
                for host in hosts
                if host.peer_id in missing and _engine_state(host) == ENGINE_FAILED
            }

    def _stop(self, layout: Layout | None) -> tuple[str, ...]:
        """End the gateway, then the hosts while settlement still answers them, then the rest."""
        records = layout.processes if layout else ()
        rest = {SETTLEMENT, *RELAYS}
        gateway = [record for record in records if record.name == GATEWAY]
        others = [record for record in records if record.name in rest]
        hosts = [record for record in records if record.name not in {GATEWAY, *rest}]
        return stop(
            (
                (gateway, GATEWAY_STOP_SECONDS),
                (hosts, HOST_STOP_SECONDS),
                (others, REST_STOP_SECONDS),
            )
        )

    def _state(
        self,
        layout: Layout,
        ready: Mapping[str, Mapping[str, object]],
        multiaddrs: Mapping[str, str],
    ) -> NetworkState:
        kept = network_dir.read_secrets(self.data_dir)
        assert kept is not None
        return NetworkState(
            gateway=GatewayEntry(
                str(ready[GATEWAY]["url"]), kept.api_key, _pid(ready[GATEWAY], "pid")
            ),
            settlement=SettlementEntry(
                str(ready[SETTLEMENT]["url"]), _pid(ready[SETTLEMENT], "pid")
            ),
            hosts=tuple(_host_entry(plan, ready[plan.name]) for plan in layout.hosts),
            relays=tuple(RelayEntry(multiaddrs[name], _pid(ready[name], "pid")) for name in RELAYS),
        )


def records_by_name(layout: Layout) -> dict[str, ProcessRecord]:
    """Return a network's processes by their names."""
    return {record.name: record for record in layout.processes}


def _models(hosts: Sequence[HostPlan]) -> tuple[str, ...]:
    """Return what the hosts will offer, each once: what the gateway looks for from the start."""
    names = [name for plan in hosts for name in offered_models(plan.engine, model_id=plan.model_id)]
    return tuple(dict.fromkeys(names))


def _running_problem(data_dir: Path) -> Problem:
    """Return why ``up`` has nothing to do."""
    quoted = shlex.quote(str(data_dir))
    return Problem(
        f"the network in {data_dir} is running",
        f"sparewatt status --data {quoted}; add hosts with add-node",
    )


def _half_made_problem(data_dir: Path, ended: Collection[str]) -> Problem:
    """Return why a network that never came up as a whole can't be mended in place."""
    quoted = shlex.quote(str(data_dir))
    return Problem(
        f"the network in {data_dir} runs without {', '.join(sorted(ended))}",
        f"sparewatt down --data {quoted}; then sparewatt up --data {quoted}",
    )


def _is_linked(host: Mapping[str, object]) -> bool:
    return text(host, "state") == "linked"


def _engine_state(host: HostEntry) -> str:
    try:
        return text(
            control_api(host.name, host.control_socket).get("/v1/status"), "engine", "state"
        )
    except AskError:
        return ""


def _host_entry(plan: HostPlan, ready: Mapping[str, object]) -> HostEntry:
    return HostEntry(
        name=plan.name,
        peer_id=str(ready["peer_id"]),
        pid=_pid(ready, "pid"),
        engine_pid=_pid(ready, "engine_pid"),
        control_socket=str(ready["control_socket"]),
    )


def _pid(ready: Mapping[str, object], name: str) -> int | None:
    value = ready.get(name)
    return value if isinstance(value, int) else None


def _with_ready(
    state: NetworkState, layout: Layout, ready: Mapping[str, Mapping[str, object]]
) -> NetworkState:
    """Return a network's state after some of its processes were started again."""
    plans = {plan.name: plan for plan in layout.hosts}
    gateway, settlement = ready.get(GATEWAY), ready.get(SETTLEMENT)
    return replace(
        state,
        gateway=replace(state.gateway, pid=_pid(gateway, "pid")) if gateway else state.gateway,
        settlement=(
            replace(state.settlement, pid=_pid(settlement, "pid"))
            if settlement
            else state.settlement
        ),
        hosts=tuple(
            _host_entry(plans[host.name], ready[host.name]) if host.name in ready else host
            for host in state.hosts
        ),
        relays=tuple(
            replace(relay, pid=_pid(ready[name], "pid")) if name in ready else relay
            for name, relay in zip(RELAYS, state.relays, strict=True)
        ),
    )


def _ports_of(state: NetworkState | None) -> dict[str, int]:
    """Return the ports that others know a network's processes by."""
    if state is None:
        return {}
    ports = {
        name: int(each.multiaddr.split("/")[4])
        for name, each in zip(RELAYS, state.relays, strict=True)
    }
    ports[SETTLEMENT] = urlsplit(state.settlement.url).port or 0
    ports[GATEWAY] = urlsplit(state.gateway.url).port or 0
    return ports


def _listen(port: int) -> list[str]:
    return ["--listen", f"/ip4/{LOOPBACK}/tcp/{port}"]


def _without_pids(state: NetworkState) -> NetworkState:
    return replace(
        state,
        gateway=replace(state.gateway, pid=None),
        settlement=replace(state.settlement, pid=None),
        hosts=tuple(replace(host, pid=None, engine_pid=None) for host in state.hosts),
        relays=tuple(replace(relay, pid=None) for relay in state.relays),
    )
