"""Images inside a request: data URLs only, of known kinds and bounded size.

A remote URL would make the engine reach out for a stranger; a small file may unpack to a huge
picture. So the size in pixels is read from the file's head, and nothing is decoded here.
"""

import base64
import binascii
import re

from peer.host.engines.parameters.rules import Unsupported

IMAGES_MAX = 8
IMAGE_CHARS_MAX = 4 * 1024 * 1024
IMAGE_SIDE_PX_MAX = 4096
_HEAD_CHARS = 64 * 1024  # of base64; the size stands in the first bytes, but for odd JPEGs
_DATA_URL = re.compile(r"data:image/(png|jpeg|gif|webp);base64,", re.IGNORECASE)
_JPEG_SIZE_MARKERS = frozenset((*range(0xC0, 0xD0),)) - {0xC4, 0xC8, 0xCC}


def check_image_url(value: object) -> str:
    """Want ``{"url": "data:image/…;base64,…"}`` with a picture of bounded size."""
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        return "must be an object with a url"
    matched = _DATA_URL.match(url)
    if matched is None:
        if url[:5].lower() == "data:":
            return Unsupported(".url must hold a PNG, JPEG, GIF or WebP image in base64")
        return Unsupported(".url must be a data URL: this host fetches nothing for a request")
    if len(url) > IMAGE_CHARS_MAX:
        return f".url must have at most {IMAGE_CHARS_MAX} characters"
    try:
        head = base64.b64decode(_whole_quads(url[matched.end() :][:_HEAD_CHARS]), validate=True)
    except (binascii.Error, ValueError):
        return ".url is not valid base64"
    size = image_size_px(head)
    if size is None:
        return ".url holds no image whose size can be told from its head"
    if not all(0 < side <= IMAGE_SIDE_PX_MAX for side in size):
        return f".url holds an image with a side of more than {IMAGE_SIDE_PX_MAX} pixels"
    return ""


def _whole_quads(data: str) -> str:
    return data[: len(data) - len(data) % 4]


def image_size_px(head: bytes) -> tuple[int, int] | None:
    """Return width and height of a PNG, GIF, WebP or JPEG file, given its first bytes."""
    if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR" and len(head) >= 24:
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if head[:6] in (b"GIF87a", b"GIF89a") and len(head) >= 10:
        return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and len(head) >= 30:
        return _webp_size_px(head)
    if head.startswith(b"\xff\xd8"):
        return _jpeg_size_px(head)
    return None


def _webp_size_px(head: bytes) -> tuple[int, int] | None:
    match head[12:16]:
        case b"VP8 ":
            width, height = head[26:28], head[28:30]
            return int.from_bytes(width, "little") & 0x3FFF, int.from_bytes(
                height, "little"
            ) & 0x3FFF
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(
                head[27:30], "little"
            ) + 1
        case _:
            return None


def _jpeg_size_px(head: bytes) -> tuple[int, int] | None:
    """Walk the segments up to the one that begins a frame."""
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if marker in _JPEG_SIZE_MARKERS:
            height, width = head[at + 5 : at + 7], head[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        at += 2 + max(2, int.from_bytes(head[at + 2 : at + 4], "big"))
    return None
