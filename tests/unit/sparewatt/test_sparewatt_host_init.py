"""``host init`` without a terminal: every answer, every way out, and what is on the disk then."""

import stat
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import click
import msgspec
import pytest
from rich.console import Console

from p2p.hardware.report import GpuFacts, HardwareReport
from p2p.network import NetworkInfo
from p2p.types import ModelId, NetworkId, PublicKey
from peer.host.schedule import DAYS, Window
from peer.host.store.candidates import SPEED_MIN, candidates, recommended
from peer.host.store.library import Library, StoredFile, StoreRecord
from sparewatt.catalogue import known_by_name, read_catalogue
from sparewatt.catalogue_engine import catalogue_engine
from sparewatt.host_file import read_host_file
from sparewatt.host_init.asking import Defaults
from sparewatt.host_init.facts import MachineFacts
from sparewatt.host_init.fetching import engine_table, models_here
from sparewatt.host_init.flow import Wishes, set_up
from sparewatt.host_tables import HostFile, LlamacppTable, LlamaServerTable, PriceTable, VllmTable
from sparewatt.options import Engine, parse_engine
from sparewatt.problems import Problem

GIB = 1 << 30
NETWORK = NetworkInfo(
    network_id=NetworkId("test"),
    root_key=PublicKey(bytes(32)),
    settlement_url="http://127.0.0.1:1",
    bootstrap=("/ip4/127.0.0.1/tcp/1/p2p/x",),
)
GPU = GpuFacts(
    uuid="GPU-00000000-0000-0000-0000-000000000001",
    name="Test 24",
    memory_bytes=24 * GIB,
    memory_bus_bits=384,
    memory_clock_mhz=10_000,
    power_limit_mw=350_000,
)


def facts(**changes) -> MachineFacts:
    gpus = changes.pop("gpus", ())
    report = HardwareReport(
        cpu_name="Test",
        cpu_cores_count=4,
        cpu_threads_count=8,
        memory_bytes=16 * GIB,
        disk_bytes=500 * GIB,
        disk_free_bytes=changes.pop("disk_free_bytes", 400 * GIB),
        gpus=gpus,
    )
    values = {
        "gpu_reason": "there is no NVIDIA driver here",
        "memory_free_bytes": 12 * GIB,
        "copy_gb_per_s": 20.0,
        "sandboxes": ("podman",),
        "address": "192.168.1.7",
        "gpu_program": "llama-server",
        "hub_answers": True,
        "has_hub_token": False,
    }
    return MachineFacts(report=report, **{**values, **changes})


class Scripted:
    """Answers questions by their words; everything else by its default."""

    is_person = True

    def __init__(self, answers: dict[str, str] | None = None, *, ends_at: int | None = None):
        self.answers = dict(answers or {})
        self.ends_at = ends_at
        self.asked: list[tuple[str, str]] = []

    def text(self, question: str, default: str, check: Callable):
        return check(self._next(question, default))

    def yes(self, question: str, *, default: bool) -> bool:
        return self._next(question, "y" if default else "n") == "y"

    def secret(self, question: str) -> str:
        return self._next(question, "")

    def _next(self, question: str, default: str) -> str:
        if len(self.asked) == self.ends_at:
            raise KeyboardInterrupt
        self.asked.append((question.strip(), default))
        for words, answer in self.answers.items():
            if words in question:
                return answer
        return default


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "join.json").write_text(NETWORK.to_json())
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    return tmp_path


def run(folder: Path, ask, machine: MachineFacts | None = None, **wishes) -> tuple[HostFile, str]:
    console = Console(file=StringIO(), width=80)
    wanted = Wishes(
        path=folder / "data" / "host.toml",
        data_dir=folder / "data",
        store=folder / "models",
        **{"network_file": folder / "join.json", **wishes},
    )
    file = set_up(console, ask, wanted, lambda _folder: machine or facts())
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    return file, text


def answers(folder: Path) -> dict[str, str]:
    return {
        "Which": str(folder / "model.gguf"),
        "in/out": "0.10/0.40",
        "When may": "mon-fri 18:00-08:00, sat sun 00:00-24:00",
        "Time zone": "Europe/Berlin",
        "Stand aside": "y",
        "TCP port": "4100",
        "relay": "y",
        "Country": "de",
    }


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_answers_stand_in_the_file_which_only_its_owner_reads(folder: Path):
    file, text = run(folder, Scripted(answers(folder)))
    path = folder / "data" / "host.toml"
    assert read_host_file(path) == file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert file.engine == (LlamacppTable(model=str(folder / "model.gguf")),)
    assert file.price.per_mtok == "0.10/0.40"
    assert file.host.listen == ("/ip4/0.0.0.0/tcp/4100",)
    assert (file.host.relayed, file.host.region) == (True, "DE")
    assert (file.schedule.mode, file.schedule.time_zone) == ("weekly", "Europe/Berlin")
    assert file.schedule.windows[0] == Window(days=DAYS[:5], start="18:00", end="08:00")
    assert file.idle.is_on
    assert (folder / "data" / (file.host.network or "")).read_text() == NETWORK.to_json()
    assert "is written" in text


def test_running_it_again_and_pressing_enter_changes_nothing(folder: Path):
    run(folder, Scripted(answers(folder)))
    path = folder / "data" / "host.toml"
    path.write_text(path.read_text().replace("[price]", "# dear, but mine\n[price]"))
    before = tree(folder)
    ask = Scripted()
    run(folder, ask, network_file=None)
    assert tree(folder) == before
    shown = dict(ask.asked)
    assert shown["Which"] == "keep"
    assert shown["Dollars per million tokens, in/out"] == "0.10/0.40"
    assert shown["When may it serve"] == answers(folder)["When may"]
    assert shown["Time zone of these hours"] == "Europe/Berlin"
    assert shown["Stand aside while you use this machine yourself?"] == "y"
    assert shown["TCP port for gateways (0: any)"] == "4100"
    assert shown["Be reachable through a relay too?"] == "y"
    assert shown["Country to announce, two letters (-: none)"] == "DE"


def test_changing_one_answer_keeps_the_others_and_the_owner_s_notes(folder: Path):
    first, _ = run(folder, Scripted(answers(folder)))
    path = folder / "data" / "host.toml"
    path.write_text(path.read_text() + "# mine\n")
    second, _ = run(folder, Scripted({"Country": "fr"}))
    assert second == msgspec.structs.replace(
        first, host=msgspec.structs.replace(first.host, region="FR")
    )
    assert path.read_text().endswith("# mine\n")


def test_leaving_at_any_question_leaves_all_as_it_was(folder: Path):
    whole = Scripted(answers(folder))
    run(folder, whole)
    for already_there in (True, False):
        if not already_there:
            for path in (folder / "data").iterdir():
                path.unlink()
            (folder / "data").rmdir()
        before = tree(folder)
        for count in range(len(whole.asked)):
            ask = Scripted(answers(folder), ends_at=count)
            with pytest.raises(SystemExit) as caught:
                run(folder, ask)
            assert caught.value.code == 130
            assert len(ask.asked) == count
            assert tree(folder) == before
            assert (folder / "data").exists() is already_there


def test_saying_no_at_the_end_writes_nothing(folder: Path):
    before = tree(folder)
    with pytest.raises(SystemExit):
        run(folder, Scripted({**answers(folder), "Write": "n"}))
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("question", "answer", "words"),
    [
        ("Which", "99", "is no choice"),
        ("Which", "no.gguf", "no model file"),
        ("Which", "http://127.0.0.1:1/v1", "does not answer"),
        ("Which", "Qwen/Qwen3-8B", "hub out of reach"),
        ("in/out", "5/5", "could be dollars"),
        ("When may", "weekends", "is no span"),
        ("Time zone", "Mars/Olympus", "is no time zone"),
        ("TCP port", "99999", "is no port"),
        ("Country", "Germany", "two letters"),
    ],
)
def test_answer_that_can_not_be_is_refused_with_what_to_write(
    question: str, answer: str, words: str, folder: Path
):
    given = {**answers(folder), question: answer}
    with pytest.raises(Exception, match=words):
        run(folder, Scripted(given), facts(hub_answers=False))


def test_broken_file_is_named_before_anything_is_asked(folder: Path):
    (folder / "data").mkdir()
    (folder / "data" / "host.toml").write_text("[host]\nqueues = 1\n")
    ask = Scripted()
    with pytest.raises(Problem, match="line 2"):
        run(folder, ask)
    assert ask.asked == []


def test_missing_network_file_is_refused_with_where_one_comes_from(folder: Path):
    with pytest.raises(Problem, match=r"no\.json"):
        run(folder, Scripted(), network_file=folder / "no.json")


def test_without_questions_every_default_is_taken_and_told(folder: Path):
    console = Console(file=StringIO(), width=80)
    file, text = run(folder, Defaults(console), model=str(folder / "model.gguf"))
    assert read_host_file(folder / "data" / "host.toml") == file
    assert file.price == PriceTable()  # nothing is known of the model's speed
    assert "model.gguf" in text


def test_code_is_hidden_checked_and_never_on_the_disk(folder: Path):
    code = "swe-account-secret"
    with pytest.raises(Problem) as caught:  # settlement is away
        run(folder, Scripted({**answers(folder), "One-time code": code}))
    assert "127.0.0.1:1" in caught.value.message
    assert "still good" in caught.value.advice
    assert all(code.encode() not in data for data in tree(folder).values())
    assert (folder / "data" / "host.toml").exists()  # the answers are kept


# -- models ---------------------------------------------------------------------------------------


def test_model_that_needs_more_memory_than_there_is_can_not_be_chosen():
    small = facts(memory_free_bytes=2 * GIB)
    found = {each.model.model_id: each for each in candidates(read_catalogue(), small.machine, ())}
    assert found[ModelId("Qwen/Qwen3-8B")].obstacle.startswith("takes ")
    assert not found[ModelId("HuggingFaceTB/SmolLM2-135M-Instruct")].obstacle


def test_estimate_of_a_gpu_is_of_its_memory_s_speed():
    on_cpu = {
        each.model.model_id: each for each in candidates(read_catalogue(), facts().machine, ())
    }
    machine = facts(gpus=(GPU,))
    on_gpu = {
        each.model.model_id: each for each in candidates(read_catalogue(), machine.machine, ())
    }
    name = ModelId("Qwen/Qwen3-8B")
    ratio = on_gpu[name].tokens_per_s / on_cpu[name].tokens_per_s
    assert ratio == pytest.approx(GPU.peak_gb_per_s / 20.0, rel=0.01)
    assert machine.watts == 30 + 280


def test_recommended_model_is_free_fits_and_is_as_fast_as_people_read():
    machine = facts(gpus=(GPU,))
    everything = frozenset(each.model_id for each in read_catalogue())
    found = candidates(read_catalogue(), machine.machine, everything)
    best = recommended(found, {"Apache-2.0"})
    assert best is not None
    assert best.model.licence == "Apache-2.0"
    assert best.tokens_per_s >= SPEED_MIN
    larger = [each for each in found if each.weights_bytes > best.weights_bytes]
    assert all(each.obstacle or each.model.licence != "Apache-2.0" for each in larger)
    assert recommended(found, ()) is None


def test_full_disk_is_an_obstacle_only_to_what_must_be_fetched():
    full = facts(disk_free_bytes=0)
    everything = frozenset(each.model_id for each in read_catalogue())
    assert all(each.obstacle for each in candidates(read_catalogue(), full.machine, ()))
    assert any(not each.obstacle for each in candidates(read_catalogue(), full.machine, everything))


def test_hours_that_don_t_count_now_are_kept_for_when_they_do(folder: Path):
    run(folder, Scripted(answers(folder)))
    never, _ = run(folder, Scripted({"When may": "never"}))
    assert never.schedule.mode == "never"
    assert len(never.schedule.windows) == 2


def test_table_of_a_model_names_where_its_fetched_file_will_lie(tmp_path: Path):
    for each in candidates(read_catalogue(), facts().machine, ()):
        table = engine_table(each, tmp_path)
        if not each.model.is_demo:
            assert isinstance(table, LlamacppTable)
            path = Path(table.model)
            assert path.parent.parent == tmp_path
            assert path.suffix == ".gguf"
            assert known_by_name(path.name) == (each.model, each.source.quantization)


def test_model_in_the_store_need_not_be_fetched(tmp_path: Path):
    found = {
        each.model.model_id: each for each in candidates(read_catalogue(), facts().machine, ())
    }
    each = found[ModelId("Qwen/Qwen3-8B")]
    table = engine_table(each, tmp_path)
    assert isinstance(table, LlamacppTable)
    folder = Path(table.model).parent
    folder.mkdir()
    record = StoreRecord(
        model_id=each.model.model_id,
        origin="hub",
        commit="",
        format="gguf",
        quantization=each.source.quantization,
        fetched_at_ns=1,
        files=(),
    )
    assert each.model.model_id not in models_here(tmp_path, "gguf")
    Library(tmp_path).keep(folder, record)
    assert each.model.model_id in models_here(tmp_path, "gguf")


def test_gpu_without_a_program_for_it_is_told_and_not_reckoned_with(folder: Path):
    machine = facts(gpus=(GPU,), gpu_program="")
    on_cpu = candidates(read_catalogue(), facts().machine, ())
    assert candidates(read_catalogue(), machine.machine, ()) == on_cpu
    assert machine.watts == facts().watts
    _, text = run(folder, Scripted(answers(folder)), machine)
    assert "Nothing here computes on the GPU" in text


def test_gpu_with_vllm_gets_whole_weights_in_a_folder_of_the_store(tmp_path: Path):
    machine = facts(gpus=(GPU,), gpu_program="vllm")
    found = {
        each.model.model_id: each for each in candidates(read_catalogue(), machine.machine, ())
    }
    each = found[ModelId("Qwen/Qwen3-8B")]
    assert each.source.quantization == "bf16"
    table = engine_table(each, tmp_path)
    assert isinstance(table, VllmTable)
    assert Path(table.model) == tmp_path / "Qwen--Qwen3-8B"
    assert table.model_id == each.model.model_id
    served = candidates(read_catalogue(), facts(gpus=(GPU,)).machine, ())
    assert all(isinstance(engine_table(each, tmp_path), LlamaServerTable) for each in served)


def stored(store: Path, name: str, model_id: str = "Qwen/Qwen3-8B") -> Path:
    """Put a model into a store as if it was fetched; return its file."""
    library = Library(store)
    folder = library.folder(f"{model_id}--gguf")
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"GGUF")
    library.keep(
        folder,
        StoreRecord(
            model_id=model_id,
            origin="path",
            commit="",
            format="gguf",
            quantization="int4",
            fetched_at_ns=1,
            files=(StoredFile(path=name, size_bytes=4, sha256="00" * 32),),
        ),
    )
    return folder / name


def test_engine_of_a_catalogue_model_is_its_file_in_the_store(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SPAREWATT_DATA", str(tmp_path))
    file = stored(tmp_path / "models", "my-own-copy.gguf")
    table = catalogue_engine("qwen/qwen3-8b", lambda _: facts())
    assert isinstance(table, LlamacppTable)
    assert (table.model, table.model_id, table.slots) == (str(file), "Qwen/Qwen3-8B", None)
    assert parse_engine("model=qwen/qwen3-8b") == Engine("model", "Qwen/Qwen3-8B")
    with_gpu = catalogue_engine("Qwen/Qwen3-8B", lambda _: facts(gpus=(GPU,)))
    assert isinstance(with_gpu, LlamaServerTable)


@pytest.mark.parametrize(
    ("model_id", "machine", "words"),
    [
        ("Qwen/Qwen3-8B", {"memory_free_bytes": 2 * GIB}, "can't be served here: takes"),
        ("Qwen/Qwen3-8B", {"hub_answers": False}, "hub out of reach"),
        ("no/model", {}, "the catalogue has no model"),
    ],
)
def test_engine_of_a_catalogue_model_that_can_not_be_had_is_refused(
    model_id: str, machine: dict[str, object], words: str, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("SPAREWATT_DATA", str(tmp_path))
    with pytest.raises(Problem) as caught:
        catalogue_engine(model_id, lambda _: facts(**machine))
    assert words in caught.value.format_message()


def test_engine_of_a_model_that_the_catalogue_does_not_know_suggests_one():
    with pytest.raises(click.BadParameter, match="did you mean Qwen/Qwen3-8B"):
        parse_engine("model=Qwen/Qwen3-8C")
