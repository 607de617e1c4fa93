"""What a model needs, whether it fits, and how fast it may answer. A core: values only.

Decoding one stream is bound by memory: each token reads all weights that it uses and the whole KV
cache once, so tokens a second are at most bandwidth over those bytes (Pope et al., "Efficiently
Scaling Transformer Inference", 2022, section 2). What engines reach of it is ``EFFICIENCY``; more
streams at a time give more tokens in all.
"""

from dataclasses import dataclass

from peer.host.store.catalogue import CatalogueModel, Source

CACHE_BYTES_PER_VALUE = 2  # engines keep keys and values in 16 bits unless told otherwise
# llama.cpp with a model of 0.3 GB held 0.43 GB when idle and 0.74 GB after a load of eight streams
# (measured), vLLM keeps a graph and activations beside: half a gigabyte, and 5 % of the rest.
OVERHEAD_BYTES = 512 * 1024**2
OVERHEAD_SHARE_PERCENT = 5
# Well-made kernels reach 60 to 80 % of the memory's speed; an estimate should rather be too low.
EFFICIENCY = 0.6


@dataclass(frozen=True, slots=True)
class Needs:
    """The memory that a model takes, in bytes."""

    weights_bytes: int
    cache_bytes: int

    @property
    def memory_bytes(self) -> int:
        """All of it, with what an engine needs beside."""
        inner = self.weights_bytes + self.cache_bytes
        return inner + inner * OVERHEAD_SHARE_PERCENT // 100 + OVERHEAD_BYTES


def weights_bytes(model: CatalogueModel, source: Source) -> int:
    """Return the size of a source's weights: as known, or parameters times bits."""
    if source.size_bytes is not None:
        return source.size_bytes
    return int(model.parameters * source.bits_per_weight) // 8


def cache_bytes(model: CatalogueModel, context_tokens: int) -> int:
    """Return what one request's keys and values take: two vectors per head, layer and token.

    A windowed layer keeps its window only. Engines that don't know windows keep all; the
    estimate is then too low for long contexts.
    """
    per_layer = 2 * model.kv_heads * model.head_dim * CACHE_BYTES_PER_VALUE
    windowed = min(context_tokens, model.window_tokens) * model.window_layers
    return per_layer * (context_tokens * (model.layers - model.window_layers) + windowed)


def needs(
    model: CatalogueModel, context_tokens: int, *, source: Source | None = None, slots: int = 1
) -> Needs:
    """Return what a model needs.

    Args:
        model: Of the catalogue.
        context_tokens: Prompt and answer together, per request.
        source: One of its sources; the first if None.
        slots: Requests at a time, each with a context of its own.
    """
    chosen = source or model.sources[0]
    return Needs(weights_bytes(model, chosen), slots * cache_bytes(model, context_tokens))


def fits(
    model: CatalogueModel,
    memory_bytes: int,
    context_tokens: int,
    *,
    source: Source | None = None,
    slots: int = 1,
) -> bool:
    """Return whether a model fits into a device's memory; arguments as of ``needs``."""
    wanted = needs(model, context_tokens, source=source, slots=slots)
    return context_tokens <= model.context_tokens and wanted.memory_bytes <= memory_bytes


def tokens_per_s(
    model: CatalogueModel,
    bandwidth_bytes_per_s: int,
    *,
    source: Source | None = None,
    context_tokens: int = 0,
) -> float:
    """Return about how many tokens a second one stream gets, from the memory's bandwidth.

    Args:
        model: Of the catalogue.
        bandwidth_bytes_per_s: Of the memory that holds it, measured or from a data sheet.
        source: One of its sources; the first if None.
        context_tokens: How many tokens stand before, whose cache is read for each new one.
    """
    chosen = source or model.sources[0]
    active = model.active_parameters or model.parameters
    read_bytes = weights_bytes(model, chosen) * active / model.parameters
    read_bytes += cache_bytes(model, context_tokens)
    return EFFICIENCY * bandwidth_bytes_per_s / read_bytes
