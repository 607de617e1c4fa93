"""What flags take, and what they say to what they don't."""

from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparewatt.options import (
    Engine,
    Price,
    dollars,
    dollars_to_micros,
    read_dollars,
    read_engine,
    read_price,
)

PARAMETER = click.Option(["--x"])
CONTEXT = click.Context(click.Command("x"))


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("0.05/0.20", Price(50_000, 200_000)),
        ("0/0", Price(0, 0)),
        ("$3/$15", Price(3_000_000, 15_000_000)),
        ("3.0/15.00", Price(3_000_000, 15_000_000)),
        ("20000/40000", Price(20_000, 40_000)),
        ("0/1000", Price(0, 1_000)),
        ("50000/$0.20", Price(50_000, 200_000)),
        ("0.000001/1.5", Price(1, 1_500_000)),
    ],
)
def test_price_in_dollars_or_micros_becomes_micros(text: str, price: Price):
    assert read_price(CONTEXT, PARAMETER, text) == price


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "1/2/3",
        "-1/2",
        "1e3/2",
        "0.0000001/1",
        "a/b",
        "2000000.0/1.0",
        "3/15",
        "999/2000",
        "$/1",
        "1 / 2",
        "\u0661/1",
    ],
)
def test_price_that_is_none_is_refused_with_an_example(text: str):
    with pytest.raises(click.BadParameter):
        read_price(CONTEXT, PARAMETER, text)


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_price_printed_and_read_is_the_same(price_in: int, price_out: int):
    price = Price(price_in, price_out)
    assert read_price(CONTEXT, PARAMETER, str(price)) == price


@given(st.integers(-(10**15), 10**15))
def test_dollars_are_exact(micros: int):
    text = dollars(micros)
    assert dollars_to_micros(text) == micros
    assert len(text.rsplit(".", 1)[1]) >= 2


def test_engine_of_each_kind_is_read(tmp_path: Path):
    model = tmp_path / "m.gguf"
    model.write_text("")
    assert read_engine(CONTEXT, PARAMETER, "demo") == Engine("demo")
    assert read_engine(CONTEXT, PARAMETER, f"llamacpp={model}") == Engine("llamacpp", str(model))
    url = "http://127.0.0.1:8000/v1"
    assert read_engine(CONTEXT, PARAMETER, f"openai={url}/") == Engine("openai", url)
    assert str(Engine("openai", url)) == f"openai={url}"
    for kind in ("vllm-url", "tgi"):
        assert read_engine(CONTEXT, PARAMETER, f"{kind}={url}") == Engine(kind, url)


def test_vllm_takes_a_folder_or_a_repository(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert read_engine(CONTEXT, PARAMETER, f"vllm={tmp_path}") == Engine("vllm", str(tmp_path))
    known = Engine("vllm", "Qwen/Qwen3-8B")
    assert read_engine(CONTEXT, PARAMETER, "vllm=Qwen/Qwen3-8B") == known


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vllm={}/empty", "has no config.json"),
        ("vllm={}/m.gguf", "a GGUF file is for llamacpp"),
        ("vllm={}/none", "there is no folder"),
        ("vllm=../none", "there is no folder"),
        ("vllm=Qwen3-8B", "a Hugging Face id like"),
        ("llama-server={}/m.gguf", "no program llama-server in the PATH"),
        ("llama-server={}/none,{}/m.gguf", "write llama-server=/PATH/llama-server,MODEL.gguf"),
        ("llama-server={}/m.gguf,{}/m.gguf", "there is no program"),
        ("tgi=127.0.0.1:80", "tgi=http://127.0.0.1"),
        ("vllm-url=https://x", "must begin with http://"),
        ("vlm=x", "write model=ID of the catalogue, llamacpp="),
    ],
)
def test_wrong_engine_is_refused_with_what_to_write(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.gguf").write_text("")
    with pytest.raises(click.BadParameter) as caught:
        read_engine(CONTEXT, PARAMETER, text.replace("{}", str(tmp_path)))
    assert words in caught.value.message


def test_llama_server_is_a_program_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program, model = tmp_path / "llama-server", tmp_path / "m.gguf"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    model.write_text("")
    both = Engine("llama-server", f"{program},{model}")
    assert read_engine(CONTEXT, PARAMETER, f"llama-server={program},{model}") == both
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_engine(CONTEXT, PARAMETER, f"llama-server={model}") == both


@pytest.mark.parametrize(
    "text",
    ["", "vllm", "demo=x", "llamacpp", "llamacpp=/no/such.gguf", "openai=", "openai=https://x"],
)
def test_engine_that_is_none_is_refused(text: str):
    with pytest.raises(click.BadParameter):
        read_engine(CONTEXT, PARAMETER, text)


def test_amount_in_dollars_becomes_micros():
    assert read_dollars(CONTEXT, PARAMETER, "$0.50") == 500_000


@pytest.mark.parametrize("text", ["0", "-1", "x", "0.0000001", "", "$"])
def test_amount_that_is_none_is_refused(text: str):
    with pytest.raises(click.BadParameter):
        read_dollars(CONTEXT, PARAMETER, text)
