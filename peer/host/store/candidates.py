"""Which models of the catalogue this machine can serve, and about how fast. A core: values only."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from p2p.types import ModelId
from peer.host.store.catalogue import CatalogueModel, PackageSource, Source
from peer.host.store.fits import needs, tokens_per_s, weights_bytes

VLLM, LLAMA_SERVER = "vllm", "llama-server"
GPU_SHARE_PERCENT = 90  # the driver and the screen have the rest
HOST_BYTES = 300 << 20  # what the host itself takes beside an engine on the processor
SLOTS_COUNT = 4
CONTEXTS_TOKENS = (8192, 4096, 2048)  # the longest that fits; people ask with a page or two
SPEED_MIN = 8.0  # tokens a second: about as fast as people read
SPEED_MAX = 400.0  # what sampling and sending allow, however small the model
PROMPT_TOKENS = 512  # of the question that the speed is told for


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What of a machine decides which models it can serve.

    Attributes:
        gpu_memory_bytes: Of its largest GPU; 0 if it has none.
        gpu_gb_per_s: How fast that memory is; 0 if it does not tell.
        gpu_program: What here can compute on its GPUs: ``vllm``, ``llama-server``, or nothing; the
            llama.cpp that comes as a package computes on the processor only.
        memory_free_bytes: What programs could have now.
        copy_gb_per_s: How fast its memory is read and written.
        hub_answers: Whether models can be fetched from the hub.
        has_hub_token: Whether the owner is logged in there.
    """

    gpu_memory_bytes: int
    gpu_gb_per_s: float
    gpu_program: str
    memory_free_bytes: int
    copy_gb_per_s: float
    disk_free_bytes: int
    hub_answers: bool
    has_hub_token: bool

    @property
    def uses_gpu(self) -> bool:
        """Whether models would be computed on a GPU."""
        return bool(self.gpu_memory_bytes and self.gpu_program)

    @property
    def room_bytes(self) -> int:
        """What a model may take where it would be computed."""
        if self.uses_gpu:
            return self.gpu_memory_bytes * GPU_SHARE_PERCENT // 100
        return max(0, self.memory_free_bytes - HOST_BYTES)


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
    models: Sequence[CatalogueModel], machine: Machine, here: Collection[ModelId]
) -> tuple[Candidate, ...]:
    """Return each model that the engine here can serve; those that can be had first, largest first.

    Args:
        models: The catalogue.
        machine: This one.
        here: Models whose weights need not be fetched.
    """
    found = [
        _candidate(model, source, machine, is_here=model.model_id in here)
        for model in models
        if (source := model.source(form_of(machine))) is not None
    ]
    return tuple(sorted(found, key=lambda each: (bool(each.obstacle), -each.weights_bytes)))


def form_of(machine: Machine) -> str:
    """Return the format of weights that the engine here reads."""
    return "safetensors" if machine.uses_gpu and machine.gpu_program == VLLM else "gguf"


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
    model: CatalogueModel, source: Source, machine: Machine, *, is_here: bool
) -> Candidate:
    room_bytes = machine.room_bytes
    contexts = [each for each in CONTEXTS_TOKENS if each <= model.context_tokens]
    contexts = contexts or [model.context_tokens]
    sizes = {
        context: needs(model, context, source=source, slots=SLOTS_COUNT).memory_bytes
        for context in contexts
    }
    context = next((each for each in contexts if sizes[each] <= room_bytes), contexts[-1])
    disk_bytes = 0 if is_here else weights_bytes(model, source)
    speed = tokens_per_s(
        model, int(_gb_per_s(machine) * 1e9), source=source, context_tokens=PROMPT_TOKENS
    )
    return Candidate(
        model=model,
        source=source,
        context_tokens=context,
        memory_bytes=sizes[context],
        disk_bytes=disk_bytes,
        tokens_per_s=min(speed, SPEED_MAX),
        obstacle=_obstacle(model, source, machine, sizes[context], disk_bytes),
        program=machine.gpu_program if machine.uses_gpu else "",
    )


def _obstacle(
    model: CatalogueModel, source: Source, machine: Machine, memory_bytes: int, disk_bytes: int
) -> str:
    if memory_bytes > machine.room_bytes:
        return f"takes {memory_bytes / (1 << 30):.1f} GiB{' of a GPU' if machine.uses_gpu else ''}"
    if disk_bytes > machine.disk_free_bytes:
        return "no room on the disk"
    return _fetch_obstacle(model, source, machine) if disk_bytes else ""


def _fetch_obstacle(model: CatalogueModel, source: Source, machine: Machine) -> str:
    if isinstance(source, PackageSource):
        return ""
    if not machine.hub_answers:
        return "hub out of reach"
    if model.is_gated and not machine.has_hub_token:
        return "hub wants a login"  # HF_TOKEN
    return ""


def _gb_per_s(machine: Machine) -> float:
    """Return the bandwidth of what holds the weights; of a GPU that does not tell, the least."""
    if not machine.uses_gpu:
        return machine.copy_gb_per_s
    return machine.gpu_gb_per_s or machine.copy_gb_per_s
