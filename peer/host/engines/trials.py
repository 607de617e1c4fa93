"""The trials of an engine's self-test: what is asked, and what an answer shows. A core.

No trial may depend on how clever the model is. So most of them use what the engine itself said
first: a piece of that answer is the stop text, and its first half is what must be gone on with. A
schema allows one value only, which no model would guess.
"""

import base64
import enum
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from p2p.receipts.cost import Usage
from p2p.types import FinishReason
from peer.host.engines.abilities import Ability
from peer.host.engines.events import AnswerEvent

FIRST_TOKENS = 12
FEW_TOKENS = 4
LONG_TOKENS = 64
TOKENS_MAX = 2 * FIRST_TOKENS + 6 * FEW_TOKENS + 2 * LONG_TOKENS + 16
"""What all trials together may cost, in completion tokens."""
QUESTION = "Tell me about the sea."
PASS_WORD = "k7v"
_TOP_LOGPROBS = 2
_STOP_CHARS = 3
_SAME_CHARS_MAX = 8  # beyond them, an engine's rounding may choose another word
_HOT = 2.0

_NAMES: Mapping[str, object] = {
    "type": "object",
    "properties": {"word": {"type": "string", "enum": [PASS_WORD]}},
    "required": ["word"],
    "additionalProperties": False,
}
# Without "strict", vLLM holds the call to its shape, but not the arguments to their schema.
_TOOL: Mapping[str, object] = {
    "type": "function",
    "function": {
        "name": "say_word",
        "description": "Says a word.",
        "parameters": _NAMES,
        "strict": True,
    },
}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Entry(msgspec.Struct):
    logprob: float
    top_logprobs: list[msgspec.Raw] = []


class _Logprobs(msgspec.Struct):
    content: list[_Entry] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine said, whole.

    Attributes:
        pieces: The texts as they came, one per event.
        finish: Why it ended, or None.
        usage: Its own counts, or None.
        is_ended: Whether ``[DONE]`` came last.
        logprobs: For each token, its log probability and how many others stood beside it.
        calls: The functions called, each with its arguments' text.
    """

    pieces: tuple[str, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    is_ended: bool = False
    logprobs: tuple[tuple[float, int], ...] = ()
    token_ids: tuple[int, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(self.pieces)

    @property
    def tokens(self) -> int:
        """The completion tokens that the engine counted."""
        return self.usage.completion_tokens if self.usage is not None else 0


def read_answer(events: Sequence[AnswerEvent]) -> Answer:
    """Return what the events of one answer say together.

    Raises:
        msgspec.DecodeError: If a chunk is not shaped as OpenAI's are.
    """
    pieces: list[str] = []
    logprobs: list[tuple[float, int]] = []
    token_ids: list[int] = []
    calls: dict[int, tuple[str, str]] = {}
    finish, usage = None, None
    for event in events:
        finish = event.finish or finish
        usage = event.usage or usage
        if event.done:
            continue
        payload = event.data.removeprefix(b"data: ")
        for choice in msgspec.json.decode(payload, type=_Chunk).choices:
            delta = choice.delta
            if piece := delta.content or delta.reasoning_content or delta.reasoning:
                pieces.append(piece)
            if choice.logprobs is not None:
                entries = choice.logprobs.content or []
                logprobs += [(entry.logprob, len(entry.top_logprobs)) for entry in entries]
            token_ids += choice.token_ids or []
            _add_calls(calls, delta.tool_calls or [])
    return Answer(
        tuple(pieces),
        finish,
        usage,
        bool(events) and events[-1].done,
        tuple(logprobs),
        tuple(token_ids),
        tuple(calls.values()),
    )


def _add_calls(calls: dict[int, tuple[str, str]], parts: list[_Call]) -> None:
    for part in parts:
        function = part.function or _Function()
        name, arguments = calls.get(part.index, ("", ""))
        calls[part.index] = (
            name + (function.name or ""),
            arguments + (function.arguments or ""),
        )


Judge = Callable[[Sequence[Answer]], str]
"""Says what is wrong with the answers of a trial; empty if nothing."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One ability to try.

    Attributes:
        requests: The fields of each request, beside model and stream.
        judge: Gets their answers, in order.
    """

    ability: Ability
    requests: tuple[Mapping[str, object], ...]
    judge: Judge


class Verdict(enum.Enum):
    """How a trial went; the words of the control API."""

    PASSED = "passed"
    FAILED = "failed"
    UNTRIED = "untried"


class TrialResult(msgspec.Struct, frozen=True):
    """What one trial showed.

    Attributes:
        detail: Why it did not pass, in a sentence; empty if it did.
    """

    ability: str
    verdict: Verdict
    detail: str = ""


def asked(text: str = QUESTION, *, begun: str = "", **fields: object) -> Mapping[str, object]:
    """Return the fields of a request, made as a client's are."""
    messages = [{"role": "user", "content": text}]
    if begun:
        messages.append({"role": "assistant", "content": begun})
    return {"messages": messages, "temperature": 0, **fields}


FIRST = asked(max_tokens=FIRST_TOKENS)
"""The request whose answer the other trials build upon."""


def judge_stream(answer: Answer) -> str:
    """Want pieces, a reason for the end, and the end."""
    if not answer.pieces:
        return "the answer says nothing"
    if len(answer.pieces) < 2 <= answer.tokens - 1:
        return f"{answer.tokens} tokens came in one piece"
    if answer.finish is None:
        return "the answer has no finish_reason"
    return "" if answer.is_ended else "the answer does not end with [DONE]"


def judge_usage(answer: Answer) -> str:
    """Want counts, and such as fit what was said."""
    usage = answer.usage
    if usage is None:
        return "the answer tells no usage"
    if usage.prompt_tokens < 1:
        return "usage counts no prompt"
    if usage.completion_tokens < len(answer.pieces):
        return f"usage counts {usage.completion_tokens} tokens for {len(answer.pieces)} pieces"
    return ""


def trial_of_max_tokens(first: Answer) -> Trial:
    """Ask for one token."""

    def judge(answers: Sequence[Answer]) -> str:
        for answer, most in ((first, FIRST_TOKENS), (answers[0], 1)):
            if answer.usage is None:
                return "the answer tells no usage"
            if max(answer.tokens, len(answer.pieces)) > most:
                return f"{max(answer.tokens, len(answer.pieces))} tokens where {most} was asked for"
        return ""

    return Trial(Ability.MAX_TOKENS, (asked(max_tokens=1),), judge)


def trials_after(first: Answer, abilities: frozenset[Ability]) -> tuple[Trial, ...]:
    """Return the trials of those abilities that go beyond the minimum, cheapest first."""
    made = (
        _stop(first),
        _seed(),
        _logprobs(),
        _token_ids(),
        _continue(first),
        _json_schema(),
        _tools(),
        _images(first),
    )
    return tuple(trial for trial in made if trial.ability in abilities)


def _stop(first: Answer) -> Trial:
    text, at = first.text, _middle(first.text)
    stop = text[at : at + _STOP_CHARS]

    def judge(answers: Sequence[Answer]) -> str:
        if not stop:
            return f"the first answer is too short to stop in: {text[:40]!r}"
        said = answers[0].text
        if said.rstrip() != text[:at].rstrip() or answers[0].finish is not FinishReason.STOP:
            return f"{said[:60]!r} was said where {stop!r} should have ended it"
        return ""

    request = asked(max_tokens=FIRST_TOKENS, stop=[stop])
    return Trial(Ability.STOP, (request,) if stop else (), judge)


def _middle(text: str) -> int:
    """Return where a piece begins that does not occur before, near the middle; -1: nowhere."""
    for at in range(len(text) // 2, len(text) - _STOP_CHARS + 1):
        piece = text[at : at + _STOP_CHARS]
        if at > 0 and piece.strip() == piece and text.find(piece) == at:
            return at
    return len(text)


def _seed() -> Trial:
    def judge(answers: Sequence[Answer]) -> str:
        one, other = (answer.text for answer in answers)
        return "" if one == other and one else f"{one[:40]!r} and {other[:40]!r} of one seed"

    request = asked(max_tokens=2 * FEW_TOKENS, temperature=_HOT, seed=7)
    return Trial(Ability.SEED, (request, request), judge)


def _logprobs() -> Trial:
    def judge(answers: Sequence[Answer]) -> str:
        answer = answers[0]
        if not _fits(len(answer.logprobs), answer):
            return f"{len(answer.logprobs)} log probabilities for {answer.tokens} tokens"
        for logprob, beside in answer.logprobs:
            if not (math.isfinite(logprob) and logprob <= 0) or beside < _TOP_LOGPROBS:
                return f"a log probability of {logprob} with {beside} beside it"
        return ""

    request = asked(max_tokens=FEW_TOKENS, logprobs=True, top_logprobs=_TOP_LOGPROBS)
    return Trial(Ability.LOGPROBS, (request,), judge)


def _fits(count: int, answer: Answer) -> bool:
    """Return whether so many are one for each token; the one that ends an answer may lack."""
    least = answer.tokens - (answer.finish is FinishReason.STOP)
    return 0 < least <= count <= answer.tokens


def _token_ids() -> Trial:
    def judge(answers: Sequence[Answer]) -> str:
        answer = answers[0]
        if not _fits(len(answer.token_ids), answer):
            return f"{len(answer.token_ids)} token ids for {answer.tokens} tokens"
        return ""

    request = asked(max_tokens=FEW_TOKENS, return_token_ids=True)
    return Trial(Ability.TOKEN_IDS, (request,), judge)


def _continue(first: Answer) -> Trial:
    begun, rest = _halves(first.pieces)

    def judge(answers: Sequence[Answer]) -> str:
        if not begun:
            return f"the first answer can't be told from its rest: {first.text[:40]!r}"
        said = answers[0].text.strip()
        count = min(len(said), len(rest), _SAME_CHARS_MAX)
        if count < _STOP_CHARS or said[:count] != rest[:count]:
            return f"after {begun[-20:]!r} came {said[:40]!r}, not {rest[:40]!r}"
        return ""

    request = asked(begun=begun, max_tokens=FEW_TOKENS)
    return Trial(Ability.CONTINUE, (request,) if begun else (), judge)


def _halves(pieces: Sequence[str]) -> tuple[str, str]:
    """Split an answer between two words, where the rest does not look like the beginning."""
    for at in range(len(pieces) // 2, len(pieces)):
        begun, rest = "".join(pieces[:at]), "".join(pieces[at:])
        looks_alike = rest.strip()[:_STOP_CHARS] == begun.strip()[:_STOP_CHARS]
        if rest[:1].isspace() and begun.rstrip() == begun != "" and not looks_alike:
            return begun, rest.strip()
    return "", ""


def _json_schema() -> Trial:
    def judge(answers: Sequence[Answer]) -> str:
        return _problem_of_json(answers[0].text)

    schema = {"name": "word", "schema": _NAMES, "strict": True}
    form = {"type": "json_schema", "json_schema": schema}
    request = asked("Answer in JSON.", max_tokens=LONG_TOKENS, response_format=form)
    return Trial(Ability.JSON_SCHEMA, (request,), judge)


def _tools() -> Trial:
    def judge(answers: Sequence[Answer]) -> str:
        calls = answers[0].calls
        if not calls or calls[0][0] != "say_word":
            return f"no function was called; it said {answers[0].text[:40]!r}"
        return _problem_of_json(calls[0][1])

    request = asked("Say a word.", max_tokens=LONG_TOKENS, tools=[_TOOL], tool_choice="required")
    return Trial(Ability.TOOLS, (request,), judge)


def _problem_of_json(text: str) -> str:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return f"{text[:60]!r} is not JSON"
    return "" if value == {"word": PASS_WORD} else f"{text[:60]!r} breaks its schema"


def _images(first: Answer) -> Trial:
    prompt_tokens = first.usage.prompt_tokens if first.usage is not None else 0

    def judge(answers: Sequence[Answer]) -> str:
        usage = answers[0].usage
        if usage is None or usage.prompt_tokens <= prompt_tokens:
            return "an image was not counted"
        return ""

    url = "data:image/png;base64," + base64.b64encode(_grey_png(32)).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    request = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    return Trial(Ability.IMAGES, (request,), judge)


def _grey_png(side_px: int) -> bytes:
    rows = zlib.compress((b"\0" + b"\x80" * side_px) * side_px)
    head = struct.pack(">IIBBBBB", side_px, side_px, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(name, data) for name, data in chunks)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)
