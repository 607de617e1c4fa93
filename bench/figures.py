"""Figures of runs: histograms of times, medians, and what one run or a row of them says. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import msgspec

from bench.cases import Case

OTHER_CORES_MAX = 0.3  # more than this used by others, and a run says little

_DIGITS_KEPT = 3


def bucket_us(time_us: int) -> int:
    """Return a time rounded to three digits, so that any number of runs can be pooled."""
    size = len(str(time_us)) - _DIGITS_KEPT
    return time_us if size <= 0 else int(round(time_us, -size))


def histogram(times_us: Iterable[int]) -> dict[int, int]:
    """Return how often each rounded time occurred."""
    counts: Counter[int] = Counter()
    for time_us, count in Counter(times_us).items():
        counts[bucket_us(time_us)] += count
    return dict(counts)


def pooled(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Return the histogram of all samples of several."""
    total: Counter[int] = Counter()
    for each in histograms:
        total.update(each)
    return dict(total)


def quantile_ms(counts: Mapping[int, int], share: float) -> float | None:
    """Return the time in ms that ``share`` of all samples do not exceed; None without samples."""
    rank = share * sum(counts.values())
    seen = 0
    for time_us in sorted(counts):
        seen += counts[time_us]
        if seen >= rank:
            return time_us / 1000
    return None


class Sample(msgspec.Struct, kw_only=True):
    """One run as the load saw it.

    Attributes:
        window_s: What was measured.
        requests: That ended in the window.
        tokens: That arrived in it.
        reads: Of sockets that brought tokens.
        latency_us: Of whole requests: histogram of microseconds, as the next three.
        ttft_us: Request written to first token read.
        gap_us: Between two tokens of one stream.
        relay_us: Engine wrote a token to client read it.
        errors: By kind; an answer that is not complete is one.
        examples: One of each kind.
        reconnects: Connections that were not kept alive.
        load_cores: How busy the load itself was; near 1.0 it was the limit.
        other_cores: What anything else on the machine used.
        disturbers: Which others used most, in cores, as far as they still live.
        cpu_s: Used in the window by each watched group of processes.
        rss_kib: Of each group, at the window's end.
        traffic: Between gateway and hosts, from before the run to its end; empty for others.
    """

    window_s: float
    requests: int
    tokens: int
    reads: int
    latency_us: dict[int, int]
    ttft_us: dict[int, int]
    gap_us: dict[int, int]
    relay_us: dict[int, int]
    errors: dict[str, int]
    examples: dict[str, str]
    reconnects: int
    load_cores: float
    other_cores: float
    disturbers: dict[str, float]
    cpu_s: dict[str, float]
    rss_kib: dict[str, int]
    traffic: dict[str, int] = {}

    @property
    def is_quiet(self) -> bool:
        """Whether nothing else disturbed it."""
        return self.other_cores < OTHER_CORES_MAX


class Times(msgspec.Struct):
    """Quantiles in milliseconds over all samples of all runs."""

    p50: float | None
    p99: float | None


class Row(msgspec.Struct, kw_only=True):
    """What the runs of one case through one target say.

    Attributes:
        runs: That count; the figures are their medians, times those of all samples pooled.
        dropped: Runs that do not count, since other work disturbed them.
        delivered: Share of the ideal tokens per second, where a scenario has one.
        cpu_s_per_1k_requests: Of each group of processes.
        cpu_s_per_1m_tokens: As above.
        cores: As above.
        rss_mib: As above, at the end of the window.
        kib_per_stream: Growth since the start by open stream.
        frames_per_write: Between gateway and hosts, in each direction.
    """

    target: str
    case: str
    runs: int
    dropped: int
    requests_per_s: float
    tokens_per_s: float
    delivered: float | None
    latency_ms: Times
    ttft_ms: Times
    gap_ms: Times
    relay_ms: Times
    tokens_per_read: float | None
    cpu_s_per_1k_requests: dict[str, float]
    cpu_s_per_1m_tokens: dict[str, float]
    cores: dict[str, float]
    rss_mib: dict[str, float]
    kib_per_stream: dict[str, float]
    load_cores: float
    other_cores: float
    errors: dict[str, int]
    examples: dict[str, str]
    frames_per_write: dict[str, float]


def make_row(
    target: str,
    case: Case,
    samples: Sequence[Sample],
    *,
    rss_before_kib: Mapping[str, int],
    dropped: int = 0,
) -> Row:
    """Return the figures of the runs of one case.

    Args:
        target: What stood between.
        case: What was asked.
        samples: The runs, at least one.
        rss_before_kib: Of each group, before any load.
        dropped: Runs left out of ``samples``.
    """
    ideal = case.ideal_tokens_per_s
    tokens_per_s = median(each.tokens / each.window_s for each in samples)
    groups = list(samples[0].cpu_s)
    rss_kib = {group: median(each.rss_kib[group] for each in samples) for group in groups}
    reads = sum(each.reads for each in samples)
    tokens = sum(each.tokens for each in samples)
    return Row(
        target=target,
        case=str(case),
        runs=len(samples),
        dropped=dropped,
        requests_per_s=median(each.requests / each.window_s for each in samples),
        tokens_per_s=tokens_per_s,
        delivered=tokens_per_s / ideal if ideal else None,
        latency_ms=_times(each.latency_us for each in samples),
        ttft_ms=_times(each.ttft_us for each in samples),
        gap_ms=_times(each.gap_us for each in samples),
        relay_ms=_times(each.relay_us for each in samples),
        tokens_per_read=tokens / reads if reads else None,
        cpu_s_per_1k_requests={
            group: median(1e3 * each.cpu_s[group] / max(1, each.requests) for each in samples)
            for group in groups
        },
        cpu_s_per_1m_tokens={
            group: median(1e6 * each.cpu_s[group] / max(1, each.tokens) for each in samples)
            for group in groups
        },
        cores={
            group: median(each.cpu_s[group] / each.window_s for each in samples) for group in groups
        },
        rss_mib={group: rss_kib[group] / 1024 for group in groups},
        kib_per_stream={
            group: (rss_kib[group] - rss_before_kib[group]) / case.concurrency
            for group in groups
            if group in rss_before_kib
        },
        load_cores=median(each.load_cores for each in samples),
        other_cores=max(each.other_cores for each in samples),
        errors=_sums(each.errors for each in samples),
        frames_per_write=_frames_per_write(_sums(each.traffic for each in samples)),
        examples={kind: text for each in samples for kind, text in each.examples.items()},
    )


def _frames_per_write(traffic: Mapping[str, int]) -> dict[str, float]:
    """Return how many frames travel together; the host's writes are the gateway's batches."""
    if not traffic:
        return {}
    return {
        "from_host": traffic["frames_in"] / max(1, traffic["batches_in"]),
        "to_host": traffic["frames_out"] / max(1, traffic["writes"]),
    }


def _times(histograms: Iterable[Mapping[int, int]]) -> Times:
    counts = pooled(histograms)
    return Times(quantile_ms(counts, 0.5), quantile_ms(counts, 0.99))


def _sums(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)
