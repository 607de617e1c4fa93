"""The doctor: each fault is found where it is, and a broken check hides no other."""

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from p2p.errors import SparewattError
from p2p.keys import load_or_create_key, lock_data_directory
from p2p.network import NetworkInfo
from p2p.types import NetworkId, PublicKey
from peer.host.schedule import DAYS, Schedule, Window
from peer.host.store.library import Library, StoredFile, StoreRecord
from peer.host.terms import PriceTerms
from sparewatt.cli import main
from sparewatt.doctor.checks_engine import check_engine
from sparewatt.doctor.checks_files import check_daemon, check_data, check_settings
from sparewatt.doctor.checks_machine import check_disk, check_gpu, check_memory, check_system
from sparewatt.doctor.checks_network import check_bootstrap, check_port, check_settlement
from sparewatt.doctor.checks_terms import check_hours, check_price, check_terms
from sparewatt.doctor.findings import Finding, State, Subject, failed, good, read_subject, skipped
from sparewatt.doctor.report import show_live
from sparewatt.doctor.run import CHECKS, run_checks, worst
from sparewatt.host_file import read_host_file
from sparewatt.host_tables import (
    DemoTable,
    FakeTable,
    HostFile,
    HostTable,
    LlamacppTable,
    OpenAiTable,
    PriceTable,
)

GREETING = b"\x13/multistream/1.0.0\n"


def network(*bootstrap: str, settlement: str = "http://127.0.0.1:1") -> NetworkInfo:
    return NetworkInfo(
        network_id=NetworkId("test"),
        root_key=PublicKey(bytes(32)),
        settlement_url=settlement,
        bootstrap=bootstrap,
    )


def subject_in(folder: Path, file: HostFile | None = None, **changes) -> Subject:
    subject = Subject(
        path=folder / "host.toml",
        data_dir=folder / "data",
        file=file or HostFile(),
        has_file=file is not None,
    )
    values = {name: getattr(subject, name) for name in Subject.__dataclass_fields__}
    return Subject(**{**values, **changes})


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def answering(server: socket.socket, answer: bytes) -> str:
    """Answer one connection in the background; return where, as a multiaddr."""

    def answer_one() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(len(GREETING))
            connection.sendall(answer)

    threading.Thread(target=answer_one, daemon=True).start()
    return f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}/p2p/x"


def one(findings: "list[Finding] | tuple[Finding, ...]") -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_machine_of_this_test_is_found_fit(tmp_path: Path):
    subject = subject_in(tmp_path)
    assert one(check_system(subject)).state is State.GOOD
    assert "GiB are free" in one(check_memory(subject)).what
    found = one(check_disk(subject))
    assert found.where == str(tmp_path)  # the data directory is not made yet
    assert check_gpu(subject)[0].check == "GPU"


def test_missing_file_is_a_fault_unless_a_host_runs_by_its_flags(tmp_path: Path):
    assert one(check_settings(subject_in(tmp_path))).mend == "sparewatt host init"
    running = subject_in(tmp_path, status={"state": "serving"})
    assert one(check_settings(running)).state is State.GOOD


@pytest.mark.parametrize(
    ("file", "word"),
    [
        (HostFile(engine=(FakeTable(),)), "network"),
        (HostFile(host=HostTable(network="join.json")), "engine"),
    ],
)
def test_file_that_names_no_network_or_engine_is_a_fault(file: HostFile, word: str, tmp_path: Path):
    found = one(check_settings(subject_in(tmp_path, file)))
    assert found.state is State.FAILED
    assert word in found.what


def test_file_that_can_not_be_read_is_reported_with_its_line(tmp_path: Path):
    path = tmp_path / "host.toml"
    path.write_text("[host]\nqueues = 3\n")
    subject = read_subject(path, tmp_path, lambda: read_host_file(path), is_deep=False)
    found = one(check_settings(subject))
    assert f"{path}, line 2" in found.what
    assert found.mend == "did you mean queue?"


def test_network_file_that_can_not_be_read_is_reported(tmp_path: Path):
    path = tmp_path / "host.toml"
    path.write_text('[host]\nnetwork = "no.json"\n')
    subject = read_subject(path, tmp_path, lambda: read_host_file(path), is_deep=False)
    found = one(check_settlement(subject))
    assert found.state is State.FAILED
    assert "no.json" in found.what


def test_key_that_others_may_read_is_a_fault(tmp_path: Path):
    data = tmp_path / "data"
    load_or_create_key(data / "node.key")
    assert one(check_data(subject_in(tmp_path))).state is State.GOOD
    (data / "node.key").chmod(0o644)
    found = one(check_data(subject_in(tmp_path)))
    assert found.state is State.FAILED
    assert f"chmod 600 {data / 'node.key'}" in found.mend


def test_sealed_key_is_a_good_one_and_a_torn_one_is_not(tmp_path: Path):
    data = tmp_path / "data"
    load_or_create_key(data / "node.key", lambda: "a passphrase")
    assert one(check_data(subject_in(tmp_path))).state is State.GOOD
    (data / "node.key").write_text("{")
    assert "backup" in one(check_data(subject_in(tmp_path))).mend


def test_directory_that_everybody_writes_to_is_a_fault(tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    found = one(check_data(subject_in(tmp_path)))
    assert (found.state, found.where) == (State.FAILED, str(data))


def test_host_that_holds_its_directory_and_does_not_answer_is_a_fault(tmp_path: Path):
    assert one(check_daemon(subject_in(tmp_path))).state is State.SKIPPED
    with lock_data_directory(tmp_path / "data"):
        found = one(check_daemon(subject_in(tmp_path)))
    assert found.state is State.FAILED
    assert str(os.getpid()) in found.what
    assert one(check_daemon(subject_in(tmp_path))).state is State.SKIPPED


@pytest.mark.parametrize(
    ("state", "expected"),
    [("serving", State.GOOD), ("paused", State.GOOD), ("refusing", State.WARNING)],
)
def test_running_host_says_how_it_is(state: str, expected: State, tmp_path: Path):
    status = {"state": state, "state_reason": "because"}
    found = one(check_daemon(subject_in(tmp_path, status=status)))
    assert found.state is expected
    assert "because" in found.what


def test_settlement_that_is_away_is_a_fault(tmp_path: Path, free_port: int):
    url = f"http://127.0.0.1:{free_port}"
    subject = subject_in(tmp_path, network=network(settlement=url))
    found = one(check_settlement(subject))
    assert (found.state, found.where) == (State.FAILED, url)


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [
        (GREETING, State.GOOD, "1 of 1"),
        (b"HTTP/1.1 400 Bad Request\r\n", State.FAILED, "another protocol"),
        (b"", State.FAILED, "hangs up"),
    ],
)
def test_bootstrap_node_is_spoken_to(
    answer: bytes, state: State, words: str, tmp_path: Path, listener: socket.socket
):
    where = answering(listener, answer)
    found = one(check_bootstrap(subject_in(tmp_path, network=network(where))))
    assert found.state is state
    assert words in found.what


def test_one_bootstrap_node_that_answers_is_enough(
    tmp_path: Path, listener: socket.socket, free_port: int
):
    away = f"/ip4/127.0.0.1/tcp/{free_port}/p2p/x"
    here = answering(listener, GREETING)
    found = one(check_bootstrap(subject_in(tmp_path, network=network(away, here))))
    assert found.state is State.WARNING
    assert "1 of 2" in found.what
    assert away in found.what
    assert one(check_bootstrap(subject_in(tmp_path, network=network()))).state is State.WARNING


def test_port_that_another_program_has_is_a_fault(tmp_path: Path, listener: socket.socket):
    address = f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}"
    file = HostFile(host=HostTable(listen=(address,)))
    found = one(check_port(subject_in(tmp_path, file)))
    assert (found.state, found.where) == (State.FAILED, "host.listen[0]")
    assert address in found.what
    running = subject_in(tmp_path, file, status={"addresses": [address]}, network=network())
    assert one(check_port(running)).state is State.GOOD


FAR = network("/ip4/8.8.8.8/tcp/4001/p2p/x", settlement="http://8.8.4.4")


@pytest.mark.parametrize(
    ("addresses", "host", "state"),
    [
        (["/ip4/8.8.8.8/tcp/1/p2p/x/p2p-circuit/p2p/y"], HostTable(relayed=True), State.GOOD),
        (["/ip4/9.9.9.9/tcp/4002"], HostTable(), State.GOOD),
        (["/ip4/192.168.1.4/tcp/4002"], HostTable(), State.WARNING),
        (["/ip4/192.168.1.4/tcp/4002"], HostTable(relayed=True), State.WARNING),
    ],
)
def test_host_behind_nat_is_told_to_open_a_port_or_be_relayed(
    addresses: list[str], host: HostTable, state: State, tmp_path: Path
):
    file = HostFile(host=host)
    subject = subject_in(tmp_path, file, status={"addresses": addresses}, network=FAR)
    assert one(check_port(subject)).state is state


def test_engine_of_each_kind_is_looked_at_in_its_place(tmp_path: Path, free_port: int):
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"<html>")
    right = tmp_path / "right.gguf"
    right.write_bytes(b"GGUF....")
    file = HostFile(
        engine=(
            FakeTable(),
            OpenAiTable(url=f"http://127.0.0.1:{free_port}/v1"),
            LlamacppTable(model="no.gguf"),
            LlamacppTable(model="wrong.gguf"),
            LlamacppTable(model="right.gguf"),
        )
    )
    found = [
        each for each in check_engine(subject_in(tmp_path, file)) if "llama.cpp" not in each.what
    ]
    assert [(each.state, each.where) for each in found] == [
        (State.WARNING, "engine[0]"),
        (State.FAILED, "engine[1].url"),
        (State.FAILED, "engine[2].model"),
        (State.FAILED, "engine[3].model"),
        (State.GOOD, str(right)),
    ]


def test_known_model_with_other_bytes_is_a_fault(tmp_path: Path):
    path = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path.write_bytes(b"GGUF")
    file = HostFile(engine=(LlamacppTable(model=path.name),))
    found = check_engine(subject_in(tmp_path, file))[-1]
    assert found.state is State.FAILED
    assert "4 bytes" in found.what


def test_fetched_model_is_compared_with_the_record_of_its_fetching(tmp_path: Path):
    folder = tmp_path / "store" / "a--b"
    folder.mkdir(parents=True)
    path = folder / "m.gguf"
    path.write_bytes(b"GGUF whole")
    digest = hashlib.sha256(b"GGUF whole").hexdigest()
    record = StoreRecord(
        model_id="a/b",
        origin="hub a/b",
        commit="",
        format="gguf",
        quantization="int4",
        fetched_at_ns=1,
        files=(StoredFile(path="m.gguf", size_bytes=10, sha256=digest),),
    )
    Library(folder.parent).keep(folder, record)
    subject = subject_in(tmp_path, HostFile(engine=(LlamacppTable(model=str(path)),)))
    assert check_engine(subject)[-1].what == "a/b, whole and right"
    path.write_bytes(b"GGUF wrong")
    assert check_engine(subject)[-1].state is State.FAILED
    path.write_bytes(b"GGUF")
    assert "4 bytes" in check_engine(subject)[-1].what


def test_key_of_a_server_must_be_readable_by_its_owner_only(tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o644)
    table = OpenAiTable(url="http://127.0.0.1:1/v1", api_key_file="key")
    found = one(check_engine(subject_in(tmp_path, HostFile(engine=(table,)))))
    assert (found.state, found.where) == (State.FAILED, "engine[0].api_key_file")


@pytest.mark.parametrize(
    ("price", "state"),
    [("0.05/0.20", State.GOOD), ("0/0", State.WARNING), ("5/5", State.FAILED)],
)
def test_price_is_looked_at(price: str, state: State, tmp_path: Path):
    file = HostFile(price=PriceTable(per_mtok=price))
    assert one(check_price(subject_in(tmp_path, file))).state is state


def test_price_below_the_owner_s_own_floor_is_told(tmp_path: Path):
    policy = PriceTerms(mode="index", floor_out_micros_per_mtok=300_000)
    found = one(check_price(subject_in(tmp_path, HostFile(price_policy=policy))))
    assert found.state is State.WARNING
    assert "0.30" in found.what


@pytest.mark.parametrize(
    ("schedule", "state", "words"),
    [
        (Schedule(), State.GOOD, "open now"),
        (Schedule(mode="never"), State.WARNING, "says never"),
        (
            Schedule(mode="weekly", windows=(Window(days=DAYS, start="00:00", end="24:00"),)),
            State.GOOD,
            "open now",
        ),
        (
            Schedule(
                mode="weekly",
                time_zone="Mars/Olympus",
                windows=(Window(days=("mon",), start="00:00", end="24:00"),),
            ),
            State.FAILED,
            "no time zone",
        ),
    ],
)
def test_hours_are_looked_at(schedule: Schedule, state: State, words: str, tmp_path: Path):
    found = one(check_hours(subject_in(tmp_path, HostFile(schedule=schedule))))
    assert found.state is state
    assert words in found.what


def test_model_whose_terms_are_not_accepted_is_a_fault(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    table = LlamacppTable(model="m.gguf", model_id="meta-llama/Llama-3.1-8B-Instruct")
    found = one(check_terms(subject_in(tmp_path, HostFile(engine=(table,)))))
    assert found.state is State.FAILED
    assert found.mend == f"sparewatt models accept {table.model_id}"
    free = LlamacppTable(model="m.gguf", model_id="Qwen/Qwen3-8B")
    assert one(check_terms(subject_in(tmp_path, HostFile(engine=(free,))))).state is State.GOOD
    said = HostFile(host=HostTable(accept_licences=True), engine=(table,))
    assert one(check_terms(subject_in(tmp_path, said))).state is State.GOOD


# -- all of them --------------------------------------------------------------------------------


def test_check_that_hangs_or_breaks_hides_no_other(tmp_path: Path):
    stuck = threading.Event()

    def hangs(_subject: Subject) -> list[Finding]:
        stuck.wait()
        return []

    def breaks(_subject: Subject) -> list[Finding]:
        raise KeyError("x")

    def refuses(_subject: Subject) -> list[Finding]:
        raise SparewattError("no such thing")

    checks = {"a": hangs, "b": breaks, "c": lambda _subject: [good("c", "fine")], "d": refuses}
    found = dict(run_checks(subject_in(tmp_path), checks, within_s=1.0))
    stuck.set()
    assert {name: worst(each) for name, each in found.items()} == {
        "a": State.SKIPPED,
        "b": State.FAILED,
        "c": State.GOOD,
        "d": State.FAILED,
    }
    assert "KeyError" in found["b"][0].what


def test_every_fault_of_the_checks_says_how_to_mend_it(tmp_path: Path, free_port: int):
    file = HostFile(
        host=HostTable(network="join.json", listen=(f"/ip4/203.0.113.9/tcp/{free_port}",)),
        engine=(LlamacppTable(model="no.gguf"), DemoTable()),
        price=PriceTable(per_mtok="nonsense"),
    )
    (tmp_path / "data").mkdir(mode=0o777)
    subject = subject_in(tmp_path, file, network=network())
    found = [each for _, part in run_checks(subject, within_s=30.0) for each in part]
    bad = [each for each in found if each.state in (State.FAILED, State.WARNING)]
    assert {each.check for each in bad} >= {"model", "settlement", "port", "price", "bootstrap"}
    assert all(each.mend for each in bad)


def test_table_fits_80_columns_and_says_where_and_what_to_do():
    console = Console(file=StringIO(), width=80)
    findings = [failed("port", "x" * 200, "y " * 80, where="/z" * 60), skipped("host", "not now")]
    names = {"port": None, "host": None}
    found = show_live([("host", findings[1:]), ("port", findings[:1])], console, names)
    assert found == findings
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "1 thing keeps this host" in text
    assert "→ y" in text


def test_doctor_s_json_holds_every_check_and_its_exit_status(tmp_path: Path):
    result = CliRunner().invoke(main, ["host", "doctor", "--data", str(tmp_path), "--json"])
    assert result.exit_code == 1
    parsed = json.loads(result.output)
    assert parsed["ok"] is False
    findings = msgspec.convert(parsed["findings"], list[Finding])
    assert {each.check for each in findings} >= set(CHECKS) - {"bootstrap"}
    shown = CliRunner().invoke(main, ["host", "doctor", "--data", str(tmp_path)])
    assert shown.exit_code == 1
    assert "sparewatt host init" in shown.output
