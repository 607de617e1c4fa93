"""Digests: computed once, kept by the file's state, right for one file, parts and folders."""

import contextlib
import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.host.store import digests
from peer.host.store import gguf as gguf_reader
from peer.host.store.digests import DigestBook, DigestError, tree
from peer.host.store.gguf import GgufError, read_gguf

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, values: list[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(values)) + b"".join(values)


PAIRS = (
    pair("general.architecture", 8, text("llama")),
    pair("general.file_type", 4, struct.pack("<I", 15)),
    pair("llama.context_length", 4, struct.pack("<I", 8192)),
    pair("tokenizer.ggml.tokens", 9, array(8, [text("a"), text("b")])),
    pair("tokenizer.ggml.scores", 9, array(6, [struct.pack("<f", 0.5)] * 2)),
    pair("tokenizer.nested", 9, array(9, [array(0, [b"\1"]), array(0, [b"\2"])])),
    pair("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", 1)),
    pair("tokenizer.chat_template", 8, text(TEMPLATE)),
    pair("general.big", 10, struct.pack("<Q", 7)),
)


def gguf(*pairs: bytes, tail: bytes = b"tensors", version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, 1, len(pairs))
    return head + b"".join(pairs) + tail


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_gguf_says_what_it_is(tmp_path):
    facts = read_gguf(written(tmp_path / "m.gguf", gguf(*PAIRS)))
    assert (facts.architecture, facts.context_tokens, facts.quantization) == ("llama", 8192, "int4")
    assert facts.template == TEMPLATE
    assert facts.parts_count == 1


async def test_licence_that_a_file_says_is_read_whatever_the_file_is_called(tmp_path):
    said = pair("general.license", 8, text("gemma"))
    path = written(tmp_path / "mine.bin", gguf(*PAIRS, said))
    digests = await DigestBook(tmp_path / "digests.json").digest(path)
    assert (digests.licence, digests.quantization) == ("gemma", "int4")


def test_tokenizer_digest_depends_on_the_tokenizer_alone(tmp_path):
    first = read_gguf(written(tmp_path / "a", gguf(*PAIRS)))
    other_type = pair("general.file_type", 4, struct.pack("<I", 7))
    moved = (PAIRS[6], other_type, *PAIRS[:1], *PAIRS[2:6], PAIRS[8])
    second = read_gguf(written(tmp_path / "b", gguf(*moved, version=2)))
    assert (second.quantization, second.template) == ("int8", "")
    assert second.tokenizer_sha256 == first.tokenizer_sha256
    changed = pair("tokenizer.ggml.tokens", 9, array(8, [text("a"), text("c")]))
    third = read_gguf(written(tmp_path / "c", gguf(*PAIRS[:3], changed, *PAIRS[4:])))
    assert third.tokenizer_sha256 != first.tokenizer_sha256


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\3\4 no model", "not a GGUF"),
        (gguf(*PAIRS, version=1), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 2**40), "things of itself"),
        (gguf(pair("a", 8, struct.pack("<Q", 2**40))), "longer than"),
        (gguf(pair("a", 99, b"")), "unknown type 99"),
        (gguf(pair("a", 9, array(99, []))), "unknown type 99"),
        (gguf(pair("a", 9, array(9, [array(9, [array(9, [array(9, [])])])]))), "unknown type 9"),
        (gguf(struct.pack("<Q", 2**20)), "name of"),
        (gguf(pair("a", 9, struct.pack("<IQ", 8, 2**50)), tail=b""), "entries"),
        (gguf(pair("a", 9, struct.pack("<IQ", 8, 9)), tail=b""), "ends within"),
        (gguf(pair("a", 9, struct.pack("<IQQ", 8, 1, 2**40)), tail=b""), "longer than"),
        (gguf(pair("a", 9, struct.pack("<IQ", 10, 2**60))), "longer than"),
    ],
)
def test_gguf_that_is_none_or_too_much_is_refused(tmp_path, data: bytes, words: str):
    with pytest.raises(GgufError, match=words):
        read_gguf(written(tmp_path / "m.gguf", data))


def test_gguf_entries_of_all_lists_together_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_reader, "ITEMS_COUNT_MAX", 9)
    fits = [pair(f"a{index}", 9, array(8, [text("")] * 3)) for index in range(3)]
    read_gguf(written(tmp_path / "m.gguf", gguf(*fits)))
    nested = pair("b", 9, array(9, [array(9, [array(0, [])])] * 4))
    with pytest.raises(GgufError, match="more than 9 entries"):
        read_gguf(written(tmp_path / "n.gguf", gguf(*fits[:2], nested)))


@given(data=st.data())
def test_gguf_that_is_cut_or_damaged_is_read_or_refused(data, tmp_path_factory):
    whole = gguf(*PAIRS, tail=b"")
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    with pytest.raises(GgufError):
        read_gguf(written(path, whole[: data.draw(st.integers(0, len(whole) - 1))]))
    at, value = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    with contextlib.suppress(GgufError):
        read_gguf(written(path, whole[:at] + bytes([value]) + whole[at + 1 :]))


async def test_file_is_read_once_and_again_only_when_it_changed(tmp_path, monkeypatch):
    read: list[Path] = []
    real = digests._read_digest

    async def counted(path: Path) -> str:
        read.append(path)
        return await real(path)

    monkeypatch.setattr(digests, "_read_digest", counted)
    data = gguf(*PAIRS)
    path = written(tmp_path / "m.gguf", data)
    book = tmp_path / "digests.json"
    found = await DigestBook(book).digest(path)
    assert found.weights_sha256 == sha256(data)
    assert found.template_sha256 == sha256(TEMPLATE.encode())
    assert (found.quantization, found.context_tokens) == ("int4", 8192)
    assert await DigestBook(book).digest(path) == found
    assert len(read) == 1
    other = gguf(*PAIRS, tail=b"TENSORS")
    path.write_bytes(other)
    os.utime(path, ns=(1, 1))
    assert (await DigestBook(book).digest(path)).weights_sha256 == sha256(other)
    assert len(read) == 2


async def test_verify_sees_what_keeps_size_and_time(tmp_path):
    path = written(tmp_path / "m.gguf", gguf(*PAIRS))
    os.utime(path, ns=(5, 5))
    book = DigestBook(tmp_path / "digests.json")
    await book.digest(path)
    assert await book.verify(path)
    path.write_bytes(gguf(*PAIRS, tail=b"TENSORS"))
    os.utime(path, ns=(5, 5))
    assert not await book.verify(path)


async def test_damaged_book_costs_time_only(tmp_path):
    path = written(tmp_path / "m.gguf", gguf(*PAIRS))
    (tmp_path / "digests.json").write_text('{"x": [')
    found = await DigestBook(tmp_path / "digests.json").digest(path)
    assert found.weights_sha256 == sha256(path.read_bytes())


async def test_owners_template_stands_in_place_of_the_models(tmp_path):
    path = written(tmp_path / "m.gguf", gguf(*PAIRS))
    found = await DigestBook(tmp_path / "d").digest(path, template="{{ mine }}")
    assert found.template_sha256 == sha256(b"{{ mine }}")


async def test_weights_in_parts_are_all_counted(tmp_path):
    parts = [
        written(tmp_path / f"m-0000{index}-of-00002.gguf", gguf(*PAIRS, tail=bytes([index])))
        for index in (1, 2)
    ]
    book = DigestBook(tmp_path / "digests.json")
    found = await book.digest(parts[0])
    rows = [(p.name, p.stat().st_size, sha256(p.read_bytes()).hex()) for p in parts]
    assert found.weights_sha256 == tree(rows) == tree(reversed(rows))
    parts[1].write_bytes(gguf(*PAIRS, tail=b"\7"))
    assert (await book.digest(parts[0])).weights_sha256 != found.weights_sha256
    parts[1].unlink()
    with pytest.raises(DigestError, match="00002-of-00002"):
        await book.digest(parts[0])


async def test_folder_of_safetensors_has_weights_tokenizer_and_template(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for index in (1, 2):
        written(folder / f"model-{index}.safetensors", bytes([index]))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "config.json").write_text("{}")
    book = DigestBook(tmp_path / "digests.json")
    first = await book.digest(folder)
    rows = [(f"model-{i}.safetensors", 1, sha256(bytes([i])).hex()) for i in (1, 2)]
    assert first.weights_sha256 == tree(rows)
    assert first.template_sha256 == sha256(TEMPLATE.encode())
    (folder / "chat_template.jinja").write_text("{{ other }}")
    second = await book.digest(folder)
    assert second.template_sha256 == sha256(b"{{ other }}")
    assert second.tokenizer_sha256 == first.tokenizer_sha256
    (folder / "tokenizer.json").write_text("{ }")
    assert (await book.digest(folder)).tokenizer_sha256 != first.tokenizer_sha256


async def test_what_is_no_model_is_named(tmp_path):
    book = DigestBook(tmp_path / "digests.json")
    with pytest.raises(DigestError, match="no weights"):
        await book.digest(tmp_path)
    with pytest.raises(DigestError, match="none"):
        await book.digest(tmp_path / "none.gguf")
    with pytest.raises(DigestError, match="not a GGUF"):
        await book.digest(written(tmp_path / "x.gguf", b"text"))


async def test_template_that_is_no_text_is_refused_and_no_crash(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    written(folder / "model.safetensors", b"weights")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "\\ud800"}')
    with pytest.raises(DigestError, match="no text"):
        await DigestBook(tmp_path / "digests.json").digest(folder)
