"""A host on a real vLLM, through a real gateway. The tests run in this order: the last ones break
what the first ones use."""

import time

import openai
import pytest
from e2e_kit import sparewatt
from vllm_kit import FIGURES, MODEL, QUESTION, VllmNetwork, left_of, timed, wait_for

pytestmark = pytest.mark.vllm


def test_answer_streams_with_its_usage_and_logprobs(vllm: VllmNetwork) -> None:
    began_s = time.monotonic()
    chunks = []
    stream = vllm.client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
    )
    for chunk in stream:
        if not chunks:
            FIGURES["first token, cold or warm by the self-test"] = time.monotonic() - began_s
        chunks.append(chunk)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    tokens = [
        token
        for chunk in chunks
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    usage = chunks[-1].usage
    assert len(tokens) == usage.completion_tokens == 24
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    assert usage.prompt_tokens == 44
    assert usage.model_extra["cost_micros"] >= 1


def test_second_answer_uses_the_cache_and_says_so(vllm: VllmNetwork) -> None:
    story = " ".join(f"The fox number {number} jumps over a dog." for number in range(40))

    def ask() -> openai.types.CompletionUsage:
        answer = vllm.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": story}], max_tokens=4
        )
        return answer.usage

    first = ask()
    assert first.prompt_tokens > 300
    with timed("a prompt of 400 tokens from the cache, and 4 tokens"):
        second = ask()
    assert second.prompt_tokens == first.prompt_tokens
    # Whole blocks only, which have 128 tokens where vLLM computes on the CPU.
    assert second.prompt_tokens_details.cached_tokens >= 256
    assert second.model_extra.keys() >= {"cost_micros"}


def test_owner_sees_kind_version_and_load(vllm: VllmNetwork) -> None:
    engine = vllm.status()
    assert (engine["kind"], engine["state"], engine["loaded_percent"]) == ("vllm", "ready", 100)
    assert "vllm" in engine["detail"]
    wait_for(lambda: vllm.status()["load"], 15, "the load")
    load = vllm.status()["load"]
    assert load["completion_tokens_total"] >= 48
    assert 0 <= load["kv_used_percent"] <= 100


def test_prompt_that_is_too_long_is_the_clients_error(vllm: VllmNetwork) -> None:
    with pytest.raises(openai.BadRequestError):
        vllm.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "word " * 9000}], max_tokens=5
        )


def test_cancel_stops_vllm(vllm: VllmNetwork) -> None:
    stream = vllm.stream("Count from one to a thousand.", 1500)
    next(iter(stream))
    wait_for(lambda: vllm.running() == 1, 10, "the request in vLLM")
    with timed("from the client's hang-up to vLLM's rest"):
        stream.close()
        wait_for(lambda: vllm.running() == 0, 5, "vLLM's rest")


def test_killed_worker_is_said_and_heals(vllm: VllmNetwork) -> None:
    before = vllm.processes()
    worker = next(each for each in before if "Worker" in each.name())
    stream = iter(vllm.stream("Count from one to a thousand.", 1500))
    next(stream)
    worker.kill()
    killed_s = time.monotonic()
    with pytest.raises(openai.APIError):
        for _ in stream:
            pass
    FIGURES["from a killed worker to the client's error"] = time.monotonic() - killed_s
    wait_for(lambda: vllm.status()["state"] != "ready", 20, "notice of the dead worker")
    FIGURES["from a killed worker to the owner's notice"] = time.monotonic() - killed_s
    assert vllm.status()["restarts"] <= 1
    wait_for(lambda: vllm.status()["state"] == "ready", 600, "vLLM's return")
    FIGURES["from a killed worker to ready again"] = time.monotonic() - killed_s
    assert vllm.status()["restarts"] == 1
    assert left_of(before) == []

    def answers() -> bool:
        try:
            return bool(list(vllm.stream(QUESTION, 4, ends=True)))
        except openai.APIError:
            return False

    wait_for(answers, 60, "an answer again")
    FIGURES["from a killed worker to an answer again"] = time.monotonic() - killed_s


def test_shutdown_with_an_open_stream_is_short_and_leaves_nothing(vllm: VllmNetwork) -> None:
    processes = vllm.processes()
    stream = iter(vllm.stream("Count from one to a thousand.", 1500))
    next(stream)
    host_began_s = time.monotonic()
    down = sparewatt("down", "--data", str(vllm.data_dir))
    FIGURES["shutdown of everything with an open stream"] = time.monotonic() - host_began_s
    assert down.returncode == 0, down.stderr
    with pytest.raises(openai.APIError):
        for _ in stream:
            pass
    wait_for(lambda: left_of(processes) == [], 15, "the end of vLLM's processes")
    FIGURES["from `down` to the last of vLLM's processes"] = time.monotonic() - host_began_s
