"""One question through the ``openai`` SDK, as any program would ask it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from p2p.errors import SparewattError

ANSWER_TOKENS_MAX = 120
ASK_SECONDS_MAX = 120.0
SEED_COUNT = 1


class AskedInVainError(SparewattError):
    """Raised when no whole answer came; says what came instead."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, of whom.

    Attributes:
        only_host: A peer id that must answer, or empty for the gateway's own choice.
    """

    model: str
    text: str
    only_host: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, as the client saw it.

    Attributes:
        answer_id: The gateway's id of the request.
        ttft_ms: From sending the request to the first text.
        usage: The counts and the cost that the answer's last chunk named.
    """

    answer_id: str
    text: str
    ttft_ms: float
    tokens_per_s: float
    usage: dict[str, object]


def ask(base_url: str, api_key: str, question: Question, hear: Callable[[str], None]) -> Answer:
    """Ask, streaming, and return the answer.

    Args:
        base_url: Of the gateway, with ``/v1``.
        api_key: Of the gateway.
        question: What to ask.
        hear: Called with each piece of text as it arrives.

    Raises:
        AskedInVainError: If the gateway refuses, the stream breaks, or no text comes.
    """
    import openai

    client = openai.OpenAI(
        base_url=base_url, api_key=api_key, max_retries=0, timeout=ASK_SECONDS_MAX
    )
    provider = {"only": [question.only_host], "allow_fallbacks": False}
    began = time.perf_counter()
    try:
        with (
            client,
            client.chat.completions.with_streaming_response.create(
                model=question.model,
                messages=[{"role": "user", "content": question.text}],
                max_tokens=ANSWER_TOKENS_MAX,
                temperature=0,
                seed=SEED_COUNT,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"provider": provider} if question.only_host else None,
            ) as response,
        ):
            collected = _Collected(hear, began)
            for chunk in response.parse():
                pieces = [choice.delta.content or "" for choice in chunk.choices]
                collected.take("".join(pieces))
                if chunk.usage is not None:
                    collected.usage = chunk.usage.model_dump(mode="json", exclude_none=True)
            answer_id = response.headers.get("x-request-id", "")
    except openai.OpenAIError as error:
        raise AskedInVainError(f"the gateway answered: {error}") from error
    return collected.answer(answer_id)


class _Collected:
    """The pieces of an answer and when they came."""

    def __init__(self, hear: Callable[[str], None], began_s: float) -> None:
        self._hear = hear
        self._began_s = began_s
        self._first_s = 0.0
        self._last_s = 0.0
        self._pieces: list[str] = []
        self.usage: dict[str, object] = {}

    def take(self, piece: str) -> None:
        """Take one piece of text; an empty one counts for nothing."""
        if not piece:
            return
        self._last_s = time.perf_counter()
        self._first_s = self._first_s or self._last_s
        self._pieces.append(piece)
        self._hear(piece)

    def answer(self, answer_id: str) -> Answer:
        """Return the answer.

        Raises:
            AskedInVainError: If no text or no usage came.
        """
        tokens = self.usage.get("completion_tokens")
        if not self._pieces or not isinstance(tokens, int):
            raise AskedInVainError("the stream ended without text or without usage")
        spent_s = max(self._last_s - self._first_s, 1e-6)
        return Answer(
            answer_id=answer_id,
            text="".join(self._pieces),
            ttft_ms=(self._first_s - self._began_s) * 1e3,
            tokens_per_s=(tokens - 1) / spent_s if tokens > 1 else 0.0,
            usage=self.usage,
        )
