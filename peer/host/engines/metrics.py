"""How busy an engine is, from its Prometheus metrics. A core: values only."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from p2p import limits
from peer.host.engines.api import EngineLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricNames:
    """What one kind of engine calls them; empty for what it does not have.

    Attributes:
        kv_used_ratio: 0 to 1.
    """

    running: str
    waiting: str
    kv_used_ratio: str = ""
    prompt_tokens_total: str = ""
    completion_tokens_total: str = ""
    preemptions_total: str = ""


VLLM_METRICS = MetricNames(
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    kv_used_ratio="vllm:kv_cache_usage_perc",
    prompt_tokens_total="vllm:prompt_tokens_total",
    completion_tokens_total="vllm:generation_tokens_total",
    preemptions_total="vllm:num_preemptions_total",
)
LLAMACPP_METRICS = MetricNames(
    running="llamacpp:requests_processing",
    waiting="llamacpp:requests_deferred",
    prompt_tokens_total="llamacpp:prompt_tokens_total",
    completion_tokens_total="llamacpp:tokens_predicted_total",
)
TGI_METRICS = MetricNames(running="tgi_batch_current_size", waiting="tgi_queue_size")


def read_metrics(body: bytes, names: MetricNames) -> EngineLoad | None:
    """Return how busy an engine says it is; None if it says nothing of it.

    Counts of several replicas are added up; of the use of their memories the fullest counts.

    Args:
        body: Metrics in Prometheus' text format.
        names: Those of this kind of engine.
    """
    samples = _samples(body)
    running, waiting = samples.get(names.running), samples.get(names.waiting)
    if running is None or waiting is None:
        return None
    ratios = samples.get(names.kv_used_ratio)
    preemptions = samples.get(names.preemptions_total)
    return EngineLoad(
        running=_count(running),
        waiting=_count(waiting),
        kv_used_percent=None if ratios is None else round(100 * min(max(ratios), 1.0), 1),
        prompt_tokens_total=_count(samples.get(names.prompt_tokens_total, [])),
        completion_tokens_total=_count(samples.get(names.completion_tokens_total, [])),
        preemptions_total=None if preemptions is None else _count(preemptions),
    )


def _samples(body: bytes) -> Mapping[str, list[float]]:
    """Return all values of each metric, whatever their labels; without what is no number."""
    samples: dict[str, list[float]] = {}
    for line in body.decode("utf-8", "replace").splitlines():
        if line.startswith("#"):
            continue
        name, value = _sample(line)
        if math.isfinite(value) and value >= 0:
            samples.setdefault(name, []).append(value)
    return samples


def _sample(line: str) -> tuple[str, float]:
    """Return name and value of ``name{labels} value [time]``; NaN if it is none."""
    name, brace, labelled = line.partition("{")
    name, space, rest = (name, " ", labelled.rpartition("}")[2]) if brace else line.partition(" ")
    words = rest.split()
    try:
        return name, float(words[0]) if space and words else math.nan
    except ValueError:
        return name, math.nan


def _count(values: list[float]) -> int:
    return min(int(sum(values)), limits.TOKENS_MAX * limits.TOKENS_MAX)
