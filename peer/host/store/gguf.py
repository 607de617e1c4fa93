"""What a GGUF file says of itself: read within bounds, for the file may come from anywhere.

The ``gguf`` package is not used: it maps the whole file, reads every tensor's place, needs NumPy,
and has no bounds. Of the format (ggml's ``docs/gguf.md``, versions 2 and 3) the head is needed.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from p2p.errors import SparewattError

MAGIC: Final = b"GGUF"
VERSIONS: Final = frozenset({2, 3})
PAIRS_COUNT_MAX = 4096
KEY_BYTES_MAX = 65_535  # as the format has it
HEAD_BYTES_MAX = 256 * 1024**2  # the largest vocabularies take some 20 MB
TEXT_BYTES_MAX = 1024**2  # a chat template has some ten thousand characters
ARRAY_DEPTH_MAX = 2
# Strings and inner arrays, each of which costs a few steps of Python however short it is. The
# largest vocabularies have 260 thousand tokens and twice as many merges; two million take seconds.
ITEMS_COUNT_MAX = 2_000_000
READ_BYTES = 1024**2  # a piece: what a head claims to hold is never reserved at once
_STRING, _ARRAY = 8, 9
_FORMATS: Final[Mapping[int, str]] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
# llama.cpp's file types (``llama_ftype``) that have a name in the list of quantisations.
_QUANTIZATIONS: Final[Mapping[int, str]] = {
    0: "fp32", 1: "fp16", 2: "int4", 3: "int4", 7: "int8", 14: "int4", 15: "int4", 32: "bf16",
    38: "mxfp4",
}  # fmt: skip
_TEMPLATE = "tokenizer.chat_template"
_TOO_LONG = f"its head is longer than {HEAD_BYTES_MAX} bytes"


class GgufError(SparewattError):
    """Raised when a file is no GGUF file that can be read; says why."""


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What a file says of itself.

    Attributes:
        architecture: E.g. ``llama``; empty if unsaid.
        context_tokens: What the model was made for; 0 if unsaid.
        quantization: One of OpenRouter's names, or ``unknown``.
        template: The chat template in Jinja, or empty.
        tokenizer_sha256: Of all that the file says of its tokenizer, but for the template: the same
            for all quantisations of a model that were made by the same program.
        parts_count: How many files the model is split into.
        licence: What it says of its licence, or empty.
    """

    architecture: str
    context_tokens: int
    quantization: str
    template: str
    tokenizer_sha256: bytes
    parts_count: int
    licence: str


def read_gguf(path: Path) -> GgufFacts:
    """Return what a file says of itself.

    Raises:
        GgufError: If it is no GGUF file, is cut, or its head is beyond the bounds.
        OSError: If it can't be read.
    """
    with path.open("rb") as file:
        try:
            return parse_gguf(file)
        except GgufError as error:
            raise GgufError(f"{path}: {error}") from error


def parse_gguf(file: BinaryIO) -> GgufFacts:
    """Return what a file says of itself, read from its first byte.

    Raises:
        GgufError: As ``read_gguf``.
    """
    try:
        return _Reader(file).read()
    except (struct.error, UnicodeDecodeError) as error:
        raise GgufError(f"it is cut or damaged: {error}") from error


class _Reader:
    """Reads the head of one file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = HEAD_BYTES_MAX
        self._items_left = ITEMS_COUNT_MAX

    def read(self) -> GgufFacts:
        if self._take(4) != MAGIC:
            raise GgufError("it is not a GGUF file")
        version = self._number("<I")
        if version not in VERSIONS:
            raise GgufError(f"it has version {version} of the format, not 2 or 3")
        self._number("<Q")  # how many tensors
        count = self._number("<Q")
        if count > PAIRS_COUNT_MAX:
            raise GgufError(f"it says more than {PAIRS_COUNT_MAX} things of itself")
        values: dict[str, object] = {}
        tokenizer: dict[str, bytes] = {}
        for _ in range(count):
            key = self._text(KEY_BYTES_MAX)
            kind = self._number("<I")
            digest = hashlib.sha256()
            values[key] = self._value(kind, digest)
            if key.startswith("tokenizer.") and not key.startswith(_TEMPLATE):
                tokenizer[key] = digest.digest()
        return _facts(values, tokenizer)

    def _value(self, kind: int, digest: "hashlib._Hash", depth: int = 0) -> object:
        """Return a value; None for an array, of which only the digest is kept."""
        digest.update(struct.pack("<I", kind))
        if kind == _STRING:
            return self._string(digest)
        if kind == _ARRAY:
            self._array(digest, depth)
            return None
        form = _FORMATS.get(kind)
        if form is None:
            raise GgufError(f"it has a value of the unknown type {kind}")
        raw = self._take(struct.calcsize(form))
        digest.update(raw)
        value: object = struct.unpack(form, raw)[0]
        return value

    def _string(self, digest: "hashlib._Hash") -> str:
        size = self._number("<Q")
        digest.update(struct.pack("<Q", size))
        if size > TEXT_BYTES_MAX:
            self._skim(size, digest)
            return ""
        raw = self._take(size)
        digest.update(raw)
        return raw.decode("utf-8", "replace")

    def _array(self, digest: "hashlib._Hash", depth: int) -> None:
        kind, count = self._number("<I"), self._number("<Q")
        digest.update(struct.pack("<IQ", kind, count))
        if kind in _FORMATS:
            self._skim(count * struct.calcsize(_FORMATS[kind]), digest)
            return
        if kind != _STRING and (kind != _ARRAY or depth >= ARRAY_DEPTH_MAX):
            raise GgufError(f"it has an array of the unknown type {kind}")
        self._items_left -= count
        if self._items_left < 0:
            raise GgufError(f"its lists have more than {ITEMS_COUNT_MAX} entries")
        for _ in range(count):
            if kind == _STRING:
                self._list_entry(digest)
            else:
                self._array(digest, depth + 1)

    def _list_entry(self, digest: "hashlib._Hash") -> None:
        """Read a string of a list, of which nothing but the digest is wanted."""
        raw = self._take(8)
        digest.update(raw)
        self._skim(int.from_bytes(raw, "little"), digest)

    def _skim(self, size: int, digest: "hashlib._Hash") -> None:
        """Read bytes for their digest only."""
        if size > self._left:
            raise GgufError(_TOO_LONG)
        while size > READ_BYTES:
            digest.update(self._take(READ_BYTES))
            size -= READ_BYTES
        digest.update(self._take(size))

    def _text(self, bytes_max: int) -> str:
        size = self._number("<Q")
        if size > bytes_max:
            raise GgufError(f"it has a name of {size} bytes")
        return self._take(size).decode()

    def _number(self, form: str) -> int:
        value: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return value

    def _take(self, size: int) -> bytes:
        if size > self._left:
            raise GgufError(_TOO_LONG)
        self._left -= size
        data = self._file.read(size)
        if len(data) < size:
            raise GgufError("it ends within its head")
        return data


def _facts(values: Mapping[str, object], tokenizer: Mapping[str, bytes]) -> GgufFacts:
    architecture = _text_of(values, "general.architecture")
    whole = hashlib.sha256()
    for key in sorted(tokenizer):
        whole.update(key.encode() + b"\0" + tokenizer[key])
    return GgufFacts(
        architecture=architecture,
        context_tokens=_count_of(values, f"{architecture}.context_length"),
        quantization=_QUANTIZATIONS.get(_count_of(values, "general.file_type", -1), "unknown"),
        template=_text_of(values, _TEMPLATE),
        tokenizer_sha256=whole.digest() if tokenizer else b"",
        parts_count=max(1, _count_of(values, "split.count")),
        licence=_text_of(values, "general.license"),
    )


def _text_of(values: Mapping[str, object], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def _count_of(values: Mapping[str, object], key: str, default: int = 0) -> int:
    value = values.get(key)
    return value if type(value) is int and 0 <= value < 2**31 else default
