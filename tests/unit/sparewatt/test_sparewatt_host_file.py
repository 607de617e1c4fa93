"""A host's file: what it says, what it may not say, and how it is written."""

import dataclasses
import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.network import NetworkInfo
from p2p.types import ModelId, NetworkId, PublicKey
from peer.host.config import (
    FakeSpec,
    HostConfig,
    LlamacppSpec,
    LlamaServerSpec,
    OpenAiSpec,
    TgiSpec,
    VllmSpec,
    VllmUrlSpec,
)
from peer.host.schedule import Schedule, Window
from peer.host.terms import (
    AccessTerms,
    ClientTerms,
    HeatTerms,
    IdleTerms,
    PowerTerms,
    PriceTerms,
    Terms,
)
from sparewatt.engines import choose_engine, slots_count
from sparewatt.host_file import line_of, parse_host_file, read_host_file
from sparewatt.host_file_text import COLUMNS, render
from sparewatt.host_options import HostFlags, host_config, with_flags
from sparewatt.host_tables import (
    ENGINES_MAX,
    DemoTable,
    FakeTable,
    HostFile,
    HostTable,
    LlamacppTable,
    LlamaServerTable,
    OpenAiTable,
    PriceTable,
    TgiTable,
    TimeoutsTable,
    VllmTable,
    VllmUrlTable,
    engine_kinds,
    keys_of,
    table_type,
)
from sparewatt.options import parse_engine, parse_price
from sparewatt.problems import Problem

PATH = Path("host.toml")
NETWORK = NetworkInfo(
    network_id=NetworkId("test"),
    root_key=PublicKey(bytes(32)),
    settlement_url="http://127.0.0.1:1",
    bootstrap=(),
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


def optional(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | values


FILES = st.builds(
    HostFile,
    host=st.builds(
        HostTable,
        network=optional(TEXTS),
        data=optional(TEXTS),
        listen=st.lists(TEXTS, max_size=3).map(tuple),
        relayed=st.booleans(),
        region=TEXTS,
        slots=optional(st.integers(1, 1024)),
        queue=st.integers(0, 4096),
    ),
    price=st.builds(
        PriceTable,
        per_mtok=TEXTS,
        cached_per_mtok=optional(TEXTS),
        minimum_micros=st.integers(0, 2**53 - 1),
    ),
    engine=st.lists(
        st.builds(DemoTable, threads=st.integers(0, 1024))
        | st.builds(FakeTable, model_id=optional(TEXTS))
        | st.builds(
            OpenAiTable,
            url=TEXTS,
            api_key_file=optional(TEXTS),
            price_per_mtok=optional(TEXTS),
            price_minimum_micros=optional(st.integers(0, 2**53 - 1)),
        )
        | st.builds(
            LlamacppTable,
            model=TEXTS,
            template_file=optional(TEXTS),
            licence=optional(TEXTS),
            context_tokens=st.integers(64, 2**24),
        ),
        max_size=ENGINES_MAX,
    ).map(tuple),
    timeouts=st.builds(TimeoutsTable, head_s=st.floats(0.001, 3600)),
)


@given(file=FILES)
def test_file_that_was_written_says_the_same_when_read(file: HostFile):
    assert parse_host_file(render(file), PATH) == file


ONCE = [table_type(name) for name in keys_of(HostFile) if name != "engine"]


def test_written_file_comments_every_key_and_is_no_wider_than_a_terminal():
    tables = (
        LlamacppTable(model="m.gguf"),
        OpenAiTable(url="http://h"),
        DemoTable(),
        FakeTable(),
        VllmTable(model="Org/Model"),
        LlamaServerTable(model="m.gguf"),
        TgiTable(url="http://h"),
    )
    lines = render(HostFile(engine=tables)).splitlines()
    assert max(map(len, lines)) <= COLUMNS
    kinds = [*ONCE, *map(type, tables)]
    keys = [key for kind in kinds for key in keys_of(kind)]
    shown = [(before, line) for before, line in itertools.pairwise(lines) if " = " in line]
    for key in keys:
        before = [above for above, line in shown if line.removeprefix("# ").startswith(f"{key} =")]
        assert before, key
        assert all(above.startswith("# ") for above in before), key
    assert len(shown) == len(keys) + len(tables)  # and each engine's kind


def test_each_kind_of_engine_and_each_key_has_a_comment():
    for kind in (*ONCE, *engine_kinds().values()):
        assert kind.__doc__
        assert all(mark.description for mark in keys_of(kind).values()), kind


@pytest.mark.parametrize(
    ("text", "line", "place", "words"),
    [
        ("[host]\nslots = 0\n", 2, "host.slots", ">= 1"),
        ("[host]\n\nslotss = 1\n", 3, "host.slotss", "did you mean slots?"),
        ("[hosts]\n", 1, "hosts", "did you mean host?"),
        ('# x\n[host]\nper_mtok = "1"\n', 3, "host.per_mtok", "it belongs under [price]"),
        ("[host]\nzzz = 1\n", 2, "host.zzz", "write one of network, data"),
        ('[host]\nlisten = "x"\n', 2, "host.listen", "a list in [ ], not a text in quotes"),
        ("[host]\nnetwork = 3\n", 2, "host.network", "a text in quotes, not a whole number"),
        ("[timeouts]\nhead_s = -1\n", 2, "timeouts.head_s", "a number > 0.0"),
        ('[[engine]]\nkind = "vlm"\n', 2, "engine[0].kind", "llamacpp, llama-server, vllm"),
        ("[[engine]]\n", 1, "engine[0]", "kind is missing"),
        ('[[engine]]\nkind = "demo"\n\n[[engine]]\nkind = "llamacpp"\n', 4, "engine[1]", "GGUF"),
        ('[[engine]]\nkind="demo"\n[[engine]]\nkind="openai"\nur="x"\n', 5, "engine[1].ur", "url"),
        ("engine = 3\n", 1, "engine", "[[engine]]"),
        ("[host]\nqueue = = 3\n", 2, "", "invalid value"),
        ("[host]\nqueue = 3\nqueue = 4\n", 3, "", "overwrite"),
    ],
)
def test_wrong_file_is_refused_by_line_key_and_advice(text: str, line: int, place: str, words: str):
    with pytest.raises(Problem) as caught:
        parse_host_file(text, PATH)
    where, _, rest = caught.value.format_message().partition(": ")
    assert where == f"host.toml, line {line}, {place}".rstrip(", ")
    assert words in rest
    assert caught.value.advice


@pytest.mark.parametrize("data", [b"\xff", b"#" * (256 * 1024 + 1), None])
def test_file_that_is_no_text_or_too_long_or_missing_is_refused(data: bytes | None, tmp_path: Path):
    path = tmp_path / "host.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(Problem) as caught:
        read_host_file(path)
    assert str(path) in caught.value.message
    assert caught.value.advice


def test_line_of_a_key_that_two_tables_have_is_that_of_the_named_one():
    text = '[[engine]]\nkind = "a"\n[[engine]]\nkind = "b"\n[host]\nkind = "c"\n'
    assert line_of(text, "engine[1].kind") == 4
    assert line_of(text, "host.kind") == 6
    assert line_of(text, "engine[1].url") == 3  # its table
    assert line_of(text, "price.per_mtok") is None


# -- what the host is told ----------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    (folder / "join.json").write_text(NETWORK.to_json())
    path = folder / "host.toml"
    path.write_text(text)
    return path


def config_of(path: Path, flags: HostFlags | None = None) -> HostConfig:
    file = with_flags(read_host_file(path), flags or HostFlags())
    return host_config(file, path, data_dir=path.parent / "data", enrol_code=None)


def test_every_setting_of_a_host_can_be_said_in_its_file(tmp_path: Path):
    (tmp_path / "m.gguf").touch()
    (tmp_path / "chat.jinja").write_text("{{ x }}")
    path = written(
        tmp_path,
        """
        [host]
        network = "join.json"
        listen = ["/ip4/127.0.0.1/tcp/4002"]
        relayed = true
        sandbox = "bubblewrap"
        sandbox_image = "localhost/mine:latest"
        region = "de"
        accept_licences = true
        slots = 3
        queue = 5
        [price]
        per_mtok = "1.0/2.0"
        cached_per_mtok = "0.5"
        minimum_micros = 7
        [[engine]]
        kind = "llamacpp"
        model = "m.gguf"
        model_id = "a/b"
        template_file = "chat.jinja"
        context_tokens = 128
        threads = 2
        licence = "MIT"
        quantization = "int4"
        [timeouts]
        head_s = 1
        token_s = 2
        load_s = 3
        [price_policy]
        mode = "index"
        factor_percent = 90
        [schedule]
        mode = "weekly"
        time_zone = "Europe/Berlin"
        windows = [{ days = ["mon", "fri"], start = "22:00", end = "07:00" }]
        [access]
        deny = ["wallet:PSEUDO"]
        [per_client]
        requests_per_minute = 30
        [idle]
        is_on = true
        [heat]
        limit_celsius = 80
        [power]
        limit_watts = 200
        """.replace("PSEUDO", "ab" * 32),
    )
    config = config_of(path)
    plain = HostConfig(
        data_dir=config.data_dir,
        network=NETWORK,
        listen=(),
        engines=(),
        control_socket=config.control_socket,
    )
    same = [
        each.name
        for each in dataclasses.fields(HostConfig)
        if getattr(config, each.name) == getattr(plain, each.name)
    ]
    # What the command adds; a code works once and is no setting.
    assert same == ["data_dir", "network", "control_socket", "enrol_code", "store_bytes_max", "hub"]
    (engine,) = config.engines
    assert (engine.slots, engine.queue_max) == (3, 5)
    assert (engine.licence, engine.quantization) == ("MIT", "int4")
    assert dataclasses.astuple(engine.prices) == (1_000_000, 500_000, 2_000_000, 7)
    assert dataclasses.astuple(config.timeouts) == (1, 2, 3)
    assert config.region == "DE"
    night = Window(days=("mon", "fri"), start="22:00", end="07:00")
    assert config.terms == Terms(
        price=PriceTerms(mode="index", factor_percent=90),
        schedule=Schedule(mode="weekly", time_zone="Europe/Berlin", windows=(night,)),
        access=AccessTerms(deny=("wallet:" + "ab" * 32,)),
        per_client=ClientTerms(requests_per_minute=30),
        idle=IdleTerms(is_on=True),
        heat=HeatTerms(limit_celsius=80),
        power=PowerTerms(limit_watts=200),
    )
    assert engine.spec == LlamacppSpec(
        model=tmp_path / "m.gguf",
        model_id=ModelId("a/b"),
        template="{{ x }}",
        context_tokens=128,
        threads=2,
    )


def test_flags_win_over_the_file_and_leave_the_rest(tmp_path: Path):
    path = written(
        tmp_path,
        """
        [host]
        network = "join.json"
        region = "FR"
        queue = 9
        [price]
        per_mtok = "1.0/2.0"
        cached_per_mtok = "0.5"
        minimum_micros = 3
        [[engine]]
        kind = "openai"
        url = "http://127.0.0.1:1/v1"
        """,
    )
    flags = HostFlags(price=parse_price("3.0/4.0"), queue_max=0, model_id="x/y", relayed=True)
    config = config_of(path, flags)
    (engine,) = config.engines
    assert dataclasses.astuple(engine.prices) == (3_000_000, 3_000_000, 4_000_000, 3)
    assert (engine.queue_max, config.region, config.use_relay) == (0, "FR", True)
    assert engine.spec == OpenAiSpec(url="http://127.0.0.1:1/v1", model_id=ModelId("x/y"))
    assert engine.slots == 512
    other = config_of(path, HostFlags(engine=parse_engine("fake")))
    assert other.engines[0].spec == FakeSpec()


def test_host_has_several_engines_each_with_slots_of_its_own(tmp_path: Path):
    text = """
        [host]
        network = "join.json"
        queue = 7
        [[engine]]
        kind = "fake"
        slots = 2
        [[engine]]
        kind = "openai"
        url = "http://127.0.0.1:1/v1"
        name = "big"
        queue = 0
        [[engine]]
        kind = "fake"
        """
    engines = config_of(written(tmp_path, text)).engines
    assert [(each.name, each.slots, each.queue_max) for each in engines] == [
        ("main", 2, 7),
        ("big", 512, 0),
        ("engine-3", 4, 7),
    ]
    for name, words in (("main", "two engines"), ("../x", "lower-case")):
        with pytest.raises(Problem, match=r"engine\[1\]\.name") as caught:
            config_of(written(tmp_path, text.replace('"big"', f'"{name}"')))
        assert words in caught.value.format_message()


PRICED = """
[price]
per_mtok = "0.05/0.20"
cached_per_mtok = "0.01"
minimum_micros = 7

[[engine]]
kind = "fake"

[[engine]]
kind = "fake"
name = "large"
price_per_mtok = "0.50/2.00"

[[engine]]
kind = "fake"
name = "third"
price_per_mtok = "600000/3000000"
price_cached_per_mtok = "0.10"
price_minimum_micros = 0
"""


def asked(file: HostFile, tmp_path: Path) -> list[tuple[int, int, int, int]]:
    (tmp_path / "join.json").write_text(NETWORK.to_json())
    host = msgspec.structs.replace(file.host, network="join.json")
    file = msgspec.structs.replace(file, host=host)
    config = host_config(file, tmp_path / "host.toml", data_dir=tmp_path, enrol_code=None)
    return [dataclasses.astuple(engine.prices) for engine in config.engines]


def test_engine_has_a_price_of_its_own_or_that_of_the_host(tmp_path: Path):
    assert asked(parse_host_file(PRICED, PATH), tmp_path) == [
        (50_000, 10_000, 200_000, 7),
        (500_000, 500_000, 2_000_000, 7),
        (600_000, 100_000, 3_000_000, 0),
    ]


def test_price_of_a_flag_wins_over_every_price_of_the_file(tmp_path: Path):
    flags = HostFlags(price=parse_price("1.00/2.00"))
    prices = asked(with_flags(parse_host_file(PRICED, PATH), flags), tmp_path)
    assert [each[:3] for each in prices] == [(1_000_000, 1_000_000, 2_000_000)] * 3


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ('price_per_mtok = "cheap"', "engine[0].price_per_mtok", "is not a price"),
        ('price_cached_per_mtok = "5"', "engine[0].price_cached_per_mtok", "dollars or micro"),
    ],
)
def test_engines_price_that_is_none_is_refused_where_it_stands(
    line: str, place: str, words: str, tmp_path: Path
):
    file = tmp_path / "host.toml"
    file.write_text(f'[[engine]]\nkind = "fake"\n{line}\n')
    with pytest.raises(Problem) as caught:
        asked(read_host_file(file), tmp_path)
    assert f"line 3, {place}" in caught.value.format_message()
    assert words in caught.value.format_message()


def test_api_key_of_an_engine_lies_in_a_private_file(tmp_path: Path):
    path = written(
        tmp_path,
        """
        [host]
        network = "join.json"
        [[engine]]
        kind = "openai"
        url = "http://h/v1"
        api_key_file = "key"
        """,
    )
    key = tmp_path / "key"
    key.write_text("secret\n")
    key.chmod(0o644)
    with pytest.raises(Exception, match="chmod 600"):
        config_of(path)
    key.chmod(0o600)
    engine = config_of(path).engines[0].spec
    assert isinstance(engine, OpenAiSpec)
    assert engine.api_key == "secret"


@pytest.mark.parametrize(
    ("lines", "place", "words"),
    [
        ('[price]\nper_mtok = "5/5"', "line 6, price.per_mtok", "could be dollars"),
        ('[price]\ncached_per_mtok = "x"', "price.cached_per_mtok", "price"),
        ("[host.x]\n", "host.x", "no such key"),
    ],
)
def test_value_that_no_host_can_use_is_refused_where_it_stands(
    lines: str, place: str, words: str, tmp_path: Path
):
    text = f'[[engine]]\nkind = "fake"\n[host]\nnetwork = "join.json"\n{lines}\n'
    with pytest.raises(Problem) as caught:
        config_of(written(tmp_path, text))
    assert place in caught.value.message
    assert words in caught.value.format_message()


@pytest.mark.parametrize(
    ("engine", "place"),
    [
        ('kind = "llamacpp"\nmodel = "no.gguf"', "line 5, engine[0].model"),
        ('kind = "openai"\nurl = "ftp://x"', "line 5, engine[0].url"),
        ('kind = "openai"\nurl = "http://x"\nmodel_id = ""', "line 6, engine[0].model_id"),
        ('kind = "openai"\nurl = "http://x"\nquantization = "q"', "line 6, engine[0].quantization"),
    ],
)
def test_engine_that_can_not_be_is_refused_where_it_stands(engine: str, place: str, tmp_path: Path):
    text = f'[host]\nnetwork = "join.json"\n[[engine]]\n{engine}\n'
    path = written(tmp_path, text)
    with pytest.raises(Problem) as caught:
        config_of(path)
    assert f"host.toml, {place}" in caught.value.message
    assert caught.value.advice


def test_vllm_of_a_file_is_told_all_that_the_file_says(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    text = """
[[engine]]
kind = "vllm"
model = "model"
model_id = "Org/Model"
python = "venv/bin/python"
context_tokens = 4096
gpu_memory_percent = 80
tensor_parallel = 2
template_file = "chat.jinja"
tool_parser = "hermes"
"""
    path = tmp_path / "host.toml"
    (engine,) = parse_host_file(text, path).engine
    choice = choose_engine(engine, path, "engine[0]")
    assert choice.spec == VllmSpec(
        model=str(tmp_path / "model"),
        model_id=ModelId("Org/Model"),
        python=str(tmp_path / "venv/bin/python"),
        context_tokens=4096,
        gpu_memory_percent=80,
        tensor_parallel=2,
        template_file=tmp_path / "chat.jinja",
        tool_parser="hermes",
    )
    assert slots_count(engine) == 256


def test_llama_server_of_a_file_is_its_program_with_its_model(tmp_path: Path):
    program, model = tmp_path / "llama-server", tmp_path / "m.gguf"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    model.write_bytes(b"GGUF")
    table = LlamaServerTable(model="m.gguf", binary="llama-server", gpu_layers=7)
    choice = choose_engine(table, tmp_path / "host.toml", "engine[0]")
    assert choice.spec == LlamaServerSpec(
        binary=program, model=model, model_id=ModelId("m"), gpu_layers=7
    )


@pytest.mark.parametrize(
    ("table", "kind"),
    [(VllmUrlTable, VllmUrlSpec), (TgiTable, TgiSpec), (OpenAiTable, OpenAiSpec)],
)
def test_server_at_a_url_is_of_the_kind_that_the_file_says(table, kind, tmp_path: Path):
    made = table(url="http://127.0.0.1:8000")
    choice = choose_engine(made, tmp_path / "host.toml", "engine[0]")
    assert type(choice.spec) is kind


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ('model = "none"', "engine[0].model", "there is no folder"),
        ('model = "Org/Model"\ndtype = "int1"', "engine[0]", "not one of auto"),
        ('model = "Org/Model"\ntool_parser = "-x"', "engine[0]", "write vLLM's name"),
        ('model = "Org/Model"\ntemplate_file = "no"', "engine[0].template_file", "can't read"),
    ],
)
def test_vllm_that_can_not_be_is_refused_where_it_stands(
    line: str, place: str, words: str, tmp_path: Path
):
    path = tmp_path / "host.toml"
    path.write_text(f'[[engine]]\nkind = "vllm"\n{line}\n')
    (engine,) = read_host_file(path).engine
    with pytest.raises(Problem) as caught:
        choose_engine(engine, path, "engine[0]")
    message = caught.value.format_message()
    assert f"{place}: " in message
    assert words in message


def test_flag_of_one_engine_is_refused_where_the_file_has_several(tmp_path: Path):
    file = HostFile(engine=(DemoTable(), FakeTable()))
    with pytest.raises(Exception, match="--context is about one engine"):
        with_flags(file, HostFlags(context_tokens=100))
    assert msgspec.structs.replace(file) == with_flags(file, HostFlags())
