"""What vLLM's log means while it loads. A core: values only.

The lines are those of vLLM 0.32; older ones say the same in most places, and a line that is not
known is passed over.
"""

import re
from dataclasses import dataclass

from peer.host.engines.recipe import Progress


@dataclass(frozen=True, slots=True)
class _Stage:
    """A line of the log that shows how far vLLM is.

    Attributes:
        pattern: What the line holds; its first group, if any, is a percentage within the stage.
        begins: Percent of the whole at the stage's begin.
        ends: Percent of the whole at its end.
        text: What it does; ``{}`` is the pattern's last group.
    """

    pattern: re.Pattern[str]
    begins: int
    ends: int
    text: str


_STAGES = (
    _Stage(re.compile(r"version \d+\.\d+"), 3, 3, "starting vLLM"),
    _Stage(re.compile(r"Resolved architecture: ()(\w+)"), 6, 6, "starting vLLM for a {}"),
    _Stage(re.compile(r"Initializing a V1 LLM engine"), 10, 10, "starting the engine"),
    _Stage(re.compile(r"Fetching \d+ files:\s+(\d+)%"), 10, 15, "fetching the model"),
    _Stage(re.compile(r"Starting to load model"), 15, 15, "loading weights"),
    _Stage(
        re.compile(r"Loading .*shards:\s+(\d+)% Completed \| (\d+/\d+)"),
        15,
        65,
        "loading weights, file {}",
    ),
    _Stage(re.compile(r"Loading weights took|Model loading took"), 65, 65, "weights are loaded"),
    _Stage(
        re.compile(r"Dynamo bytecode|torch\.compile takes|[Cc]ompiling a graph"),
        70,
        70,
        "compiling",
    ),
    _Stage(
        re.compile(r"KV cache size: ()([\d,]+) tokens"), 80, 80, "room for {} tokens of context"
    ),
    _Stage(re.compile(r"Capturing CUDA graphs.*?:\s+(\d+)%"), 80, 95, "capturing CUDA graphs"),
    _Stage(re.compile(r"init engine .* took"), 95, 95, "the engine is ready, opening the server"),
    _Stage(re.compile(r"Application startup complete"), 99, 99, "the server is open"),
)

_TROUBLES = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (
            r"operator torchvision::nms does not exist",
            "the torchvision beside vLLM does not fit its PyTorch: python -m pip uninstall "
            "torchvision torchaudio torchcodec in that environment",
        ),
        (
            r"No package metadata was found for vllm",
            "this vLLM's own command does not work; its package lacks the module api_server",
        ),
        (
            r"unrecognized arguments:.*--uds",
            "this vLLM can't listen on a unix socket: update it, or start it yourself and use "
            "vllm-url",
        ),
        (r"unrecognized arguments: (.*)", "this vLLM does not know {}: update it"),
        (
            r"estimated maximum model length is (\d+)",
            "the GPU's memory holds a context of {} tokens at most: lower context_tokens",
        ),
        (
            r"User-specified max_model_len \((\d+)\) is greater",
            "the model itself has no context of {} tokens: lower context_tokens",
        ),
        (
            r"No available memory for the cache blocks",
            "the weights leave no memory for contexts: raise gpu_memory_percent, or take a smaller "
            "model or more GPUs",
        ),
        (
            r"less than desired GPU memory utilization",
            "another program uses the GPU's memory: end it, or lower gpu_memory_percent",
        ),
        (
            r"CUDA out of memory|OutOfMemoryError",
            "the GPU's memory is full: lower gpu_memory_percent or context_tokens, or take a "
            "smaller model",
        ),
        (r"No space left on device", "the disk is full"),
        (
            r"Permission denied: '/models/",
            "the sandbox's user may not read the model's files: chmod -R a+rX its folder",
        ),
        (
            r"(?:Repo id must be|is not a (?:valid|local) .*identifier|config\.json.* not found"
            r"|Invalid repository ID|does not appear to have a file named)",
            "this is no folder or repository of a model that vLLM can read",
        ),
        (
            r"Failed to find C compiler|gcc: not found|command 'gcc' failed",
            "vLLM compiles kernels and finds no C compiler: install gcc, or say eager = true",
        ),
        (r"not supported for now|are not supported", "this vLLM can't run this kind of model"),
        (r"ModuleNotFoundError: (No module named .*)", "the environment is broken: {}"),
    )
)


class VllmLogReader:
    """Understands vLLM's log while it loads; progress never goes back."""

    def __init__(self) -> None:
        self.progress = Progress(0, "starting vLLM")
        self.trouble = ""
        self._rank = len(_TROUBLES)

    def read_line(self, line: str) -> None:
        """Take one line; of several troubles the first in our list explains best."""
        for stage in _STAGES:
            if found := stage.pattern.search(line):
                self._advance(stage, found)
        for rank, (pattern, advice) in enumerate(_TROUBLES[: self._rank]):
            if found := pattern.search(line):
                self.trouble = advice.format(*found.groups())
                self._rank = rank
                return

    def _advance(self, stage: _Stage, found: re.Match[str]) -> None:
        groups = found.groups()
        within = int(groups[0]) if groups and groups[0] else 0
        percent = stage.begins + (stage.ends - stage.begins) * within // 100
        if percent >= self.progress.percent:
            self.progress = Progress(percent, stage.text.format(groups[-1] if groups else ""))
