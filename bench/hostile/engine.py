"""A cheap stand-in for an OpenAI-compatible engine: a steady trickle, or as much as one reads.

``python engine.py PORT``. A prompt that holds the word ``flood`` is answered with events of
4 KiB as fast as they are taken; any other with one short event per 10 ms.
"""

import asyncio
import contextlib
import json
import sys

GAP_S = 0.01
FLOOD_TOKEN = "x" * 4096
MODEL = "sparewatt/fake"


def event(body: object) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def chunk(content: str | None, finish: str | None) -> bytes:
    """Return an event of the answer."""
    delta = {"role": "assistant", "content": content} if content is not None else {}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": MODEL,
            "choices": [choice],
        }
    )


def frame(data: bytes) -> bytes:
    """Return a chunk of the chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def answer(body: bytes, writer: asyncio.StreamWriter) -> None:
    """Answer one request."""
    request = json.loads(body)
    count = int(request.get("max_tokens") or 16)
    floods = b"flood" in body
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    for _ in range(count):
        if not floods:
            await asyncio.sleep(GAP_S)
        writer.write(frame(chunk(FLOOD_TOKEN if floods else "word ", None)))
        await writer.drain()
    usage = {"prompt_tokens": 10, "completion_tokens": count, "total_tokens": 10 + count}
    tail = event({"id": "chatcmpl-1", "choices": [], "model": MODEL, "usage": usage})
    writer.write(frame(chunk(None, "length") + tail + b"data: [DONE]\n\n") + b"0\r\n\r\n")
    await writer.drain()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection."""
    with (
        contextlib.suppress(asyncio.IncompleteReadError, ConnectionError),
        contextlib.closing(writer),
    ):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = 0
            for line in head.split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            body = await reader.readexactly(length)
            if head.startswith(b"post"):
                await answer(body, writer)
                continue
            models = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
            size = f"content-length: {len(models)}"
            head_fields = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{size}\r\n\r\n"
            writer.write((head_fields + models).encode())


async def main(port: int) -> None:
    """Run the command."""
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
