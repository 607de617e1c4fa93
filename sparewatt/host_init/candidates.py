"""Which models of the catalogue this machine can serve, and about how fast. A core: values only."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from p2p.types import ModelId
from peer.host.store.catalogue import CatalogueModel, PackageSource, Source
from peer.host.store.fits import needs, tokens_per_s, weights_bytes
from sparewatt.host_init.facts import VLLM, MachineFacts

GPU_SHARE_PERCENT = 90  # the driver and the screen have the rest
HOST_BYTES = 300 << 20  # what the host itself takes beside an engine on the processor
SLOTS_COUNT = 4
CONTEXTS_TOKENS = (8192, 4096, 2048)  # the longest that fits; people ask with a page or two
SPEED_MIN = 8.0  # tokens a second: about as fast as people read
SPEED_MAX = 400.0  # what sampling and sending allow, however small the model
PROMPT_TOKENS = 512  # of the question that the speed is told for


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model on this machine.

    Attributes:
        context_tokens: Per request, with all slots busy.
        memory_bytes: What it takes then.
        disk_bytes: To be fetched; 0 if its weights are here.
        tokens_per_s: An estimate for one answer at a time.
        obstacle: Why it can't be served here, or nothing.
        program: ``vllm``, ``llama-server``, or nothing for the llama.cpp that is a package.
    """

    model: CatalogueModel
    source: Source
    context_tokens: int
    memory_bytes: int
    disk_bytes: int
    tokens_per_s: float
    obstacle: str
    program: str

    @property
    def weights_bytes(self) -> int:
        """The size of its weights."""
        return weights_bytes(self.model, self.source)


def candidates(
    models: Sequence[CatalogueModel], facts: MachineFacts, here: Collection[ModelId]
) -> tuple[Candidate, ...]:
    """Return each model that the engine here can serve; those that can be had first, largest first.

    Args:
        models: The catalogue.
        facts: Of this machine.
        here: Models whose weights need not be fetched.
    """
    found = [
        _candidate(model, source, facts, is_here=model.model_id in here)
        for model in models
        if (source := model.source(form_of(facts))) is not None
    ]
    return tuple(sorted(found, key=lambda each: (bool(each.obstacle), -each.weights_bytes)))


def form_of(facts: MachineFacts) -> str:
    """Return the format of weights that the engine here reads."""
    return "safetensors" if facts.uses_gpu and facts.gpu_program == VLLM else "gguf"


def recommended(found: Sequence[Candidate], free: Collection[str]) -> Candidate | None:
    """Return the largest model that is fast enough to be wanted, else the fastest that fits.

    Args:
        found: What there is.
        free: Licences that let everybody serve a model; others are never recommended.
    """
    fitting = [each for each in found if not each.obstacle and each.model.licence in free]
    fast = [each for each in fitting if each.tokens_per_s >= SPEED_MIN]
    if fast:
        return fast[0]
    return max(fitting, key=lambda each: each.tokens_per_s, default=None)


def _candidate(
    model: CatalogueModel, source: Source, facts: MachineFacts, *, is_here: bool
) -> Candidate:
    room_bytes = _room_bytes(facts)
    contexts = [each for each in CONTEXTS_TOKENS if each <= model.context_tokens]
    contexts = contexts or [model.context_tokens]
    sizes = {
        context: needs(model, context, source=source, slots=SLOTS_COUNT).memory_bytes
        for context in contexts
    }
    context = next((each for each in contexts if sizes[each] <= room_bytes), contexts[-1])
    disk_bytes = 0 if is_here else weights_bytes(model, source)
    speed = tokens_per_s(
        model, int(_gb_per_s(facts) * 1e9), source=source, context_tokens=PROMPT_TOKENS
    )
    return Candidate(
        model=model,
        source=source,
        context_tokens=context,
        memory_bytes=sizes[context],
        disk_bytes=disk_bytes,
        tokens_per_s=min(speed, SPEED_MAX),
        obstacle=_obstacle(model, source, facts, sizes[context], disk_bytes),
        program=facts.gpu_program if facts.uses_gpu else "",
    )


def _obstacle(
    model: CatalogueModel, source: Source, facts: MachineFacts, memory_bytes: int, disk_bytes: int
) -> str:
    if memory_bytes > _room_bytes(facts):
        return f"takes {memory_bytes / (1 << 30):.1f} GiB{' of a GPU' if facts.uses_gpu else ''}"
    if disk_bytes > facts.report.disk_free_bytes:
        return "no room on the disk"
    return _fetch_obstacle(model, source, facts) if disk_bytes else ""


def _fetch_obstacle(model: CatalogueModel, source: Source, facts: MachineFacts) -> str:
    if isinstance(source, PackageSource):
        return ""
    if not facts.hub_answers:
        return "hub out of reach"
    if model.is_gated and not facts.has_hub_token:
        return "hub wants a login"  # HF_TOKEN
    return ""


def _room_bytes(facts: MachineFacts) -> int:
    if facts.uses_gpu:
        return max(gpu.memory_bytes for gpu in facts.gpus) * GPU_SHARE_PERCENT // 100
    return max(0, facts.memory_free_bytes - HOST_BYTES)


def _gb_per_s(facts: MachineFacts) -> float:
    """Return the bandwidth of what holds the weights; of a GPU that does not tell, the least."""
    if not facts.uses_gpu:
        return facts.copy_gb_per_s
    largest = max(facts.gpus, key=lambda gpu: gpu.memory_bytes)
    return largest.peak_gb_per_s or facts.copy_gb_per_s
