"""What an engine of a host is, as values: one spec for each kind. A core: values only."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from p2p import limits
from p2p.types import ModelId
from p2p.wire import require_range, require_text

DEFAULT_CONTEXT_TOKENS = 2048
FAKE_MODEL_ID = ModelId("sparewatt/fake")
VLLM_DTYPES = ("auto", "bfloat16", "float16", "float32")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamacppSpec:
    """A llama.cpp child process for one model file.

    Attributes:
        model: The GGUF file.
        model_id: The Hugging Face repository id under which it is offered.
        template: A chat template in Jinja, or empty for the one inside the file.
        context_tokens: Prompt and answer together, per request.
        threads: 0 for half of the logical cores, at least one.
    """

    kind: ClassVar[str] = "llamacpp"
    model: Path
    model_id: ModelId
    template: str = ""
    context_tokens: int = DEFAULT_CONTEXT_TOKENS
    threads: int = 0

    def __post_init__(self) -> None:
        require_text("model_id", self.model_id, bytes_max=limits.RECORD_TEXT_BYTES_MAX)
        require_range("context_tokens", self.context_tokens, 64, 2**24)
        require_range("threads", self.threads, 0, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaServerSpec:
    """A ``llama-server`` of the owner's own, e.g. built for his GPU, as a child process.

    Attributes:
        binary: The program.
        model: The GGUF file.
        model_id: The Hugging Face repository id under which it is offered.
        template_file: A chat template in Jinja, or None for the one inside the model.
        context_tokens: Prompt and answer together, per request.
        threads: 0 for its own choice.
        gpu_layers: How many of the model's layers go to the GPU; all that fit if it is -1.
    """

    kind: ClassVar[str] = "llama-server"
    binary: Path
    model: Path
    model_id: ModelId
    template_file: Path | None = None
    context_tokens: int = DEFAULT_CONTEXT_TOKENS
    threads: int = 0
    gpu_layers: int = -1

    def __post_init__(self) -> None:
        require_text("model_id", self.model_id, bytes_max=limits.RECORD_TEXT_BYTES_MAX)
        require_range("context_tokens", self.context_tokens, 64, 2**24)
        require_range("threads", self.threads, 0, 1024)
        require_range("gpu_layers", self.gpu_layers, -1, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSpec:
    """vLLM as a child of the host.

    Attributes:
        model: A folder (an absolute path), or a Hugging Face repository id that vLLM itself
            fetches, for which it needs the network.
        model_id: The Hugging Face repository id under which it is offered.
        python: Of the environment that has vLLM; empty for this one.
        image: A container image that has vLLM, for launchers that start containers.
        revision: Of the repository; empty for its newest.
        context_tokens: Prompt and answer together, per request; 0 for the model's own.
        gpu_memory_percent: How much of each GPU's memory it takes.
        cpu_kv_gib: Memory for contexts where vLLM computes on the CPU.
        tensor_parallel: Over how many GPUs each layer is split.
        pipeline_parallel: Over how many GPUs, or machines, the layers are spread.
        ray: Whether its workers are those of a Ray cluster, on several machines; the owner starts
            it (``ray start --head`` here, ``ray start --address=…`` there).
        dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``.
        quantization_method: vLLM's name of it; empty for what the model's files say.
        template_file: A chat template in Jinja, or None for the model's own.
        tool_parser: How this model writes tool calls, by vLLM's name; empty for no tools.
        reasoning_parser: How it writes its reasoning, by vLLM's name; empty for none.
        eager: Whether to do without compiling and CUDA graphs: ready sooner, slower later.
    """

    kind: ClassVar[str] = "vllm"
    model: str
    model_id: ModelId
    python: str = ""
    image: str = ""
    revision: str = ""
    context_tokens: int = 0
    gpu_memory_percent: int = 90
    cpu_kv_gib: int = 4
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    ray: bool = False
    dtype: str = "auto"
    quantization_method: str = ""
    template_file: Path | None = None
    tool_parser: str = ""
    reasoning_parser: str = ""
    eager: bool = False

    def __post_init__(self) -> None:
        require_text("model", self.model, bytes_max=4096)
        require_text("model_id", self.model_id, bytes_max=limits.RECORD_TEXT_BYTES_MAX)
        if self.context_tokens:
            require_range("context_tokens", self.context_tokens, 64, 2**24)
        require_range("gpu_memory_percent", self.gpu_memory_percent, 1, 99)
        require_range("cpu_kv_gib", self.cpu_kv_gib, 1, 4096)
        require_range("tensor_parallel", self.tensor_parallel, 1, 64)
        require_range("pipeline_parallel", self.pipeline_parallel, 1, 64)
        if self.dtype not in VLLM_DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, not one of {', '.join(VLLM_DTYPES)}")
        for name in ("quantization_method", "tool_parser", "reasoning_parser", "revision"):
            value = getattr(self, name)
            if value and not _WORD.fullmatch(value):
                raise ValueError(f"{name} is {value!r}: write vLLM's name of it")
        for name in ("model", "python", "image"):
            if getattr(self, name).startswith("-"):
                raise ValueError(f"{name} is {getattr(self, name)!r}: it can't begin with a dash")

    @property
    def is_folder(self) -> bool:
        """Whether the model's files lie here."""
        return self.model.startswith("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiSpec:
    """An OpenAI-compatible server that already runs; the host only passes requests on.

    Attributes:
        url: Its base, e.g. ``http://127.0.0.1:8000/v1``; plain HTTP, meant for this machine or
            its own network.
        model_id: The one model to offer, or None for all that ``/models`` lists.
        api_key: Sent as a bearer token if not empty.
        context_tokens: What to promise if the server does not say.
    """

    kind: ClassVar[str] = "openai"
    url: str
    model_id: ModelId | None = None
    api_key: str = field(default="", repr=False)
    context_tokens: int = DEFAULT_CONTEXT_TOKENS

    def __post_init__(self) -> None:
        _check_url(self.url)
        require_range("context_tokens", self.context_tokens, 64, 2**24)


def _check_url(url: str) -> None:
    """Refuse an address that can't be asked, or that would carry a password into logs.

    Raises:
        ValueError: If it is one.
    """
    if not url.startswith("http://"):
        raise ValueError(f"an engine's URL must begin with http://, not {url[:16]!r}")
    if not url.isascii() or not url.isprintable() or set(url) & set(" ?#"):
        raise ValueError("an engine's URL is http://HOST:PORT/BASE and nothing behind it")
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("an engine's URL holds no password: its key lies in api_key_file")
    if not parts.hostname or parts.port == 0:  # reading a port beyond 65535 raises
        raise ValueError(f"an engine's URL must name its host and port, not {url!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmUrlSpec(OpenAiSpec):
    """A vLLM that already runs."""

    kind: ClassVar[str] = "vllm-url"


@dataclass(frozen=True, slots=True, kw_only=True)
class TgiSpec(OpenAiSpec):
    """A Text Generation Inference server that already runs."""

    kind: ClassVar[str] = "tgi"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSpec:
    """A deterministic engine in this process; for tests and rehearsals.

    Attributes:
        tokens: How many tokens an answer has if its request does not bound it below.
        first_token_s: Time before the first token.
        token_s: Time between tokens.
        word: What every token says; empty for a row of different words.
    """

    kind: ClassVar[str] = "fake"
    model_id: ModelId = FAKE_MODEL_ID
    context_tokens: int = DEFAULT_CONTEXT_TOKENS
    tokens: int = 16
    first_token_s: float = 0.01
    token_s: float = 0.01
    word: str = ""
