"""The bodies of settlement's requests and answers: bounds, pieces, base64."""

import base64
import binascii
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TypeVar, cast

import httpx

from peer.settlement_replies import ReceiptItem, SettlementUnreachableError

REQUEST_ITEMS_BYTES_MAX = 2 * 1024 * 1024  # before base64; settlement takes 4 MiB of body
RESPONSE_BYTES_MAX = 4 * 1024 * 1024

ReplyT = TypeVar("ReplyT")
ItemT = TypeVar("ItemT")


class Body(httpx.AsyncByteStream):
    """A request's body in one piece.

    httpx's own is an async generator, which it leaves to the garbage collector when the
    connection breaks; trio complains of that.
    """

    def __init__(self, content: bytes) -> None:
        self._pieces = [content]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


async def read_body(response: httpx.Response) -> bytes:
    """Return an answer's body.

    Raises:
        SettlementUnreachableError: If it is beyond ``RESPONSE_BYTES_MAX``.
    """
    said = response.headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > RESPONSE_BYTES_MAX:
        raise SettlementUnreachableError("settlement's answer is too long")
    data = bytearray()
    parts = cast(AsyncGenerator[bytes, None], response.aiter_raw())
    async with contextlib.aclosing(parts):
        async for part in parts:
            data += part
            if len(data) > RESPONSE_BYTES_MAX:
                raise SettlementUnreachableError("settlement's answer is too long")
    return bytes(data)


def in_parts(
    items: Sequence[ItemT], size_bytes: Callable[[ItemT], int], count_max: int
) -> Iterator[list[ItemT]]:
    """Yield the items in pieces that one request may hold."""
    part: list[ItemT] = []
    total = 0
    for item in items:
        size = size_bytes(item)
        if part and (len(part) == count_max or total + size > REQUEST_ITEMS_BYTES_MAX):
            yield part
            part, total = [], 0
        part.append(item)
        total += size
    if part:
        yield part


def as_many(results: list[ReplyT], items: Sequence[object]) -> Iterable[ReplyT]:
    """Return results, one for each item.

    Raises:
        SettlementUnreachableError: If there are more or fewer.
    """
    if len(results) != len(items):
        raise SettlementUnreachableError("settlement answered for another number of items")
    return results


def receipt_bytes(item: ReceiptItem) -> int:
    """Return how long a batch of receipts is, before base64."""
    return len(item.batch) + len(item.cosignature or b"") + sum(map(len, item.receipts))


def receipt_item(item: ReceiptItem) -> dict[str, object]:
    """Return a batch of receipts as it stands in a request."""
    return {
        "receipts": [to_text(receipt) for receipt in item.receipts],
        "batch": to_text(item.batch),
        "cosignature": to_text(item.cosignature) if item.cosignature else None,
    }


def to_text(data: bytes) -> str:
    """Return bytes as they stand in JSON."""
    return base64.b64encode(data).decode("ascii")


def from_text(text: str) -> bytes:
    """Return the bytes of a text of an answer.

    Raises:
        SettlementUnreachableError: If it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SettlementUnreachableError("settlement's answer holds a bad base64 text") from error
