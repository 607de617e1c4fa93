"""Digests of a model's weights, tokenizer and template: computed once, kept, checked when asked.

A file is known by its path, size, time of change and inode: if one of them differs, it is read
anew. Of weights in several files, the digest is that of their names, sizes and digests (``tree``),
so that it needs no reading of the files one after the other.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from p2p.errors import SparewattError
from p2p.paths import write_private
from peer.host.store.gguf import MAGIC, GgufError, read_gguf

DIGESTS_NAME = "digests.json"
FILES_COUNT_MAX = 4096
BOOK_BYTES_MAX = 8 * 1024**2
READ_BYTES = 16 * 1024**2
TEMPLATE_BYTES_MAX = 1024**2
TOKENIZER_NAMES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<index>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


class DigestError(SparewattError):
    """Raised when a model's files can't be read; says which."""


@dataclass(frozen=True, slots=True)
class ModelDigests:
    """What goes into a manifest. An empty digest means that there is nothing of it to see.

    Attributes:
        quantization: As the files say, or ``unknown``.
        context_tokens: What the model was made for, or 0.
        licence: What the files say of their licence, or empty.
    """

    weights_sha256: bytes
    tokenizer_sha256: bytes
    template_sha256: bytes
    quantization: str = "unknown"
    context_tokens: int = 0
    licence: str = ""


class _Known(msgspec.Struct, frozen=True):
    """A file that was read."""

    size_bytes: int
    mtime_ns: int
    inode: int
    sha256: str


class DigestBook:
    """Digests of files, kept over restarts. What it lost it computes again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, _Known] | None = None

    async def digest(self, model: Path, *, template: str = "") -> ModelDigests:
        """Return the digests of a GGUF file, the first of several, or a folder of safetensors.

        Args:
            model: Where it is.
            template: What the engine uses in place of the model's own, or empty.

        Raises:
            DigestError: If it is missing, or not a model.
        """
        try:
            return await self._digest(model, template)
        except OSError as error:
            raise DigestError(f"can't read {model}: {error.strerror}") from error
        except GgufError as error:
            raise DigestError(str(error)) from error
        except UnicodeEncodeError as error:  # half a surrogate, in a template or a file's name
            raise DigestError(f"{model} has a template or a name that is no text") from error

    async def verify(self, model: Path) -> bool:
        """Read a model's files again; return whether they are what they were.

        Raises:
            DigestError: As ``digest``.
        """
        before = await self.digest(model)
        known = await self._load()
        for path in await trio.to_thread.run_sync(_all_files, model):
            known.pop(str(path), None)
        return await self.digest(model) == before

    async def _digest(self, model: Path, template: str) -> ModelDigests:
        files = await trio.to_thread.run_sync(weight_files, model)
        if not files:
            raise DigestError(f"{model} holds no weights (GGUF or safetensors)")
        weights = tree([(each.name, *await self._sized(each)) for each in files])
        given = hashlib.sha256(template.encode()).digest() if template else b""
        if await trio.to_thread.run_sync(_is_gguf, files[0]):  # whatever its name says
            facts = await trio.to_thread.run_sync(read_gguf, files[0])
            own = hashlib.sha256(facts.template.encode()).digest() if facts.template else b""
            return ModelDigests(
                weights,
                facts.tokenizer_sha256,
                given or own,
                facts.quantization,
                facts.context_tokens,
                facts.licence,
            )
        names = [model / name for name in TOKENIZER_NAMES]
        present = [each for each in names if await trio.Path(each).is_file()]
        tokenizer = tree([(each.name, *await self._sized(each)) for each in present])
        own = await trio.to_thread.run_sync(_template_digest, model)
        return ModelDigests(weights, tokenizer if present else b"", given or own)

    async def _sized(self, path: Path) -> tuple[int, str]:
        """Return a file's size and digest; read it only if it is not the one that is known."""
        known = await self._load()
        state = await trio.Path(path).stat()
        found = known.get(str(path))
        now = (state.st_size, state.st_mtime_ns, state.st_ino)
        if found is not None and (found.size_bytes, found.mtime_ns, found.inode) == now:
            return found.size_bytes, found.sha256
        sha256 = await _read_digest(path)
        if len(known) >= FILES_COUNT_MAX:
            known.clear()  # they are computed again when they are wanted
        known[str(path)] = _Known(*now, sha256)
        text = msgspec.json.encode(known).decode()
        await trio.to_thread.run_sync(write_private, self._path, text)
        return state.st_size, sha256

    async def _load(self) -> dict[str, _Known]:
        if self._known is None:
            self._known = await trio.to_thread.run_sync(_read_book, self._path)
        return self._known


def tree(files: Iterable[tuple[str, int, str]]) -> bytes:
    """Return one digest of several files: that of the only one, or of a list of all.

    Args:
        files: Name, size and SHA-256 in hex of each.
    """
    rows = sorted(files)
    if len(rows) == 1:
        return bytes.fromhex(rows[0][2])
    lines = "".join(f"{sha256} {size} {name}\n" for name, size, sha256 in rows)
    return hashlib.sha256(f"sparewatt/files/1\n{lines}".encode()).digest()


def weight_files(model: Path) -> Sequence[Path]:
    """Return a model's files of weights, in the order of their names. Blocks.

    Raises:
        DigestError: If one of several parts is missing.
    """
    if model.is_dir():
        return sorted(each for each in model.iterdir() if each.suffix == ".safetensors")
    split = _SPLIT.fullmatch(model.name)
    if split is None:
        return [model]
    count = int(split["count"])
    if not 1 <= count <= FILES_COUNT_MAX:
        raise DigestError(f"{model} says that it has {count} parts")
    stem = split["stem"]
    parts = [
        model.with_name(f"{stem}-{index:05}-of-{count:05}.gguf") for index in range(1, count + 1)
    ]
    for part in parts:
        if not part.is_file():
            raise DigestError(f"{model} comes in {count} parts, and {part.name} is missing")
    return parts


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(len(MAGIC)) == MAGIC


def _all_files(model: Path) -> Sequence[Path]:
    named = [model / name for name in TOKENIZER_NAMES] if model.is_dir() else []
    return [*weight_files(model), *named]


async def _read_digest(path: Path) -> str:
    """Return a file's SHA-256, in pieces, so that a cancel does not wait for all of it."""
    state = hashlib.sha256()

    def step() -> bool:
        block = file.read(READ_BYTES)
        state.update(block)
        return bool(block)

    with path.open("rb") as file:
        while await trio.to_thread.run_sync(step):
            pass
    return state.hexdigest()


def _template_digest(folder: Path) -> bytes:
    """Return the digest of a folder's chat template; empty if it has none."""
    alone = folder / "chat_template.jinja"
    if alone.is_file() and alone.stat().st_size <= TEMPLATE_BYTES_MAX:
        return hashlib.sha256(alone.read_bytes()).digest()
    config = folder / "tokenizer_config.json"
    if not config.is_file() or config.stat().st_size > 64 * TEMPLATE_BYTES_MAX:
        return b""
    try:
        values: object = json.loads(config.read_bytes())
    except (ValueError, RecursionError):
        return b""
    template = values.get("chat_template") if isinstance(values, dict) else None
    return hashlib.sha256(template.encode()).digest() if isinstance(template, str) else b""


def _read_book(path: Path) -> dict[str, _Known]:
    try:
        with path.open("rb") as file:
            data = file.read(BOOK_BYTES_MAX + 1)
        return msgspec.json.decode(data, type=dict[str, _Known])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
