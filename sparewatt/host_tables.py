"""``host.toml``: what it may hold.

Each table of the file is a struct below. A key's bounds, its comment in the file and its example
stand where it is declared, so a new key is one line here. ``sparewatt.host_file`` reads them,
``sparewatt.host_file_text`` writes them with their comments, and ``sparewatt.host_options`` and
``sparewatt.engines`` make them the host's config. The owner's terms are the host's own types; what
he changes while it serves wins over what stands here.

A one-time code is not in it: what works once is no setting. Neither is any other secret: an API
key lies in a file of its own, which is named here.
"""

import typing
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from peer.host.schedule import Schedule
from peer.host.terms import (
    AccessTerms,
    ClientTerms,
    HeatTerms,
    IdleTerms,
    PowerTerms,
    PriceTerms,
)

ENGINES_MAX: Final = 8  # as many as a record has offers


def note(text: str, example: str | None = None) -> msgspec.Meta:
    """Return a key's comment, and what to show as its value while it has none."""
    return msgspec.Meta(description=text, examples=None if example is None else [example])


def whole(least: int, most: int, text: str) -> msgspec.Meta:
    """Return the bounds and the comment of a whole number."""
    return msgspec.Meta(ge=least, le=most, description=f"{text} {least} to {most}.")


def seconds(most: float, text: str) -> msgspec.Meta:
    """Return the bounds and the comment of a time in seconds."""
    return msgspec.Meta(gt=0.0, le=most, description=f"{text} Seconds, up to {most:g}.")


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: its keys are the fields."""


class HostTable(_Table, frozen=True):
    """Where this host belongs and how it is reached."""

    network: Annotated[str | None, note("The network to join: its file.", "join.json")] = None
    data: Annotated[
        str | None,
        note(
            "Where keys, books and logs lie, if not in the user's data directory. Back it up: "
            "earnings belong to node.key.",
            "/srv/sparewatt/host",
        ),
    ] = None
    listen: Annotated[
        tuple[str, ...],
        note("Where gateways connect to. Port 0 takes another one at each start."),
    ] = ("/ip4/0.0.0.0/tcp/0",)
    relayed: Annotated[
        bool, note("Be reachable through a relay too: behind a router that you can't open.")
    ] = False
    accept_licences: Annotated[
        bool,
        note(
            "You have read and accept the terms of each model below. If false, `sparewatt models "
            "accept` asks for each; what is not accepted is not announced."
        ),
    ] = False
    sandbox: Annotated[
        Literal["auto", "podman", "docker", "bubblewrap", "native"],
        note(
            "What keeps engines that the host starts away from the rest of this machine: the best "
            "that works here (auto), or one by name. native is none at all."
        ),
    ] = "auto"
    sandbox_image: Annotated[
        str | None,
        note(
            "The container image that they run in, if not this machine's own programs.",
            "localhost/sparewatt/engine-llamacpp:latest",
        ),
    ] = None
    region: Annotated[str, note("Two-letter country code to announce, or empty.", "DE")] = ""
    slots: Annotated[int, whole(1, 1024, "Requests that the engine works on at a time.")] | None = (
        None
    )
    queue: Annotated[
        int, whole(0, 4096, "Requests that wait for a slot; the next one is told 'busy'.")
    ] = 16


class PriceTable(_Table, frozen=True):
    """What a million tokens cost; dollars with a point ("0.05"), or micro-dollars ("50000").

    An engine may have prices of its own, under its [[engine]].
    """

    per_mtok: Annotated[str, note("Of the prompt / of the answer.")] = "0.05/0.20"
    cached_per_mtok: Annotated[
        str | None,
        note("Of what the engine still has of an earlier prompt; as the prompt if unset.", "0.01"),
    ] = None
    minimum_micros: Annotated[
        int, whole(0, 2**53 - 1, "The least that a request costs, in micro-dollars.")
    ] = 0
    dollars_per_kwh: Annotated[
        str | None, note("What electricity costs you; only to suggest a price.", "0.25")
    ] = None


class _EngineTable(_Table, frozen=True, kw_only=True):
    """What any kind of engine may say; the rest is as for the whole host."""

    name: Annotated[
        str | None,
        note("What you call it; the first is main, another engine-2, and so on.", "small-one"),
    ] = None
    slots: Annotated[int, whole(1, 1024, "Requests that it works on at a time.")] | None = None
    queue: Annotated[int, whole(0, 4096, "Requests that wait for one of its slots.")] | None = None
    price_per_mtok: Annotated[
        str | None,
        note("What a million tokens of its models cost, if not what the host asks.", "0.10/0.40"),
    ] = None
    price_cached_per_mtok: Annotated[
        str | None, note("Of what it still has of an earlier prompt.", "0.02")
    ] = None
    price_minimum_micros: (
        Annotated[
            int, whole(0, 2**53 - 1, "The least that a request to it costs, in micro-dollars.")
        ]
        | None
    ) = None


class LlamacppTable(_EngineTable, frozen=True, kw_only=True, tag="llamacpp", tag_field="kind"):
    """llama.cpp, which the host starts, with one model file."""

    model: Annotated[str, note("The GGUF file.")]
    model_id: Annotated[
        str | None, note("The model's Hugging Face id, if not known.", "Qwen/Qwen3-8B")
    ] = None
    template_file: Annotated[
        str | None, note("A chat template in Jinja, in place of the model's own.", "chat.jinja")
    ] = None
    context_tokens: Annotated[int, whole(64, 2**24, "Prompt and answer together, per request.")] = (
        2048
    )
    threads: Annotated[int, whole(0, 1024, "CPU threads; 0 takes half of the cores.")] = 0
    licence: Annotated[
        str | None, note("SPDX id, or the name of the model's own terms.", "Apache-2.0")
    ] = None
    quantization: Annotated[str | None, note("How the weights are rounded.", "int4")] = None


class OpenAiTable(_EngineTable, frozen=True, kw_only=True, tag="openai", tag_field="kind"):
    """An OpenAI-compatible server that already runs."""

    url: Annotated[str, note("Its base, with http://.")]
    model_id: Annotated[
        str | None, note("The one model to offer; all that it lists if unset.", "Qwen/Qwen3-8B")
    ] = None
    api_key_file: Annotated[
        str | None, note("A file (mode 0600) with the key that it asks for.", "engine.key")
    ] = None
    context_tokens: Annotated[
        int, whole(64, 2**24, "What to promise if the server does not say.")
    ] = 2048
    licence: Annotated[
        str | None, note("SPDX id, or the name of the model's own terms.", "Apache-2.0")
    ] = None
    quantization: Annotated[str | None, note("How the weights are rounded.", "bf16")] = None


class LlamaServerTable(
    _EngineTable, frozen=True, kw_only=True, tag="llama-server", tag_field="kind"
):
    """llama.cpp's own llama-server, a program of yours, which the host starts."""

    model: Annotated[str, note("The GGUF file.")]
    binary: Annotated[
        str | None, note("The program, if it is not in the PATH.", "/opt/llama.cpp/llama-server")
    ] = None
    model_id: Annotated[
        str | None, note("The model's Hugging Face id, if not known.", "Qwen/Qwen3-8B")
    ] = None
    template_file: Annotated[
        str | None, note("A chat template in Jinja, in place of the model's own.", "chat.jinja")
    ] = None
    context_tokens: Annotated[int, whole(64, 2**24, "Prompt and answer together, per request.")] = (
        2048
    )
    threads: Annotated[int, whole(0, 1024, "CPU threads; 0 leaves it to llama-server.")] = 0
    gpu_layers: Annotated[int, whole(-1, 1000, "Layers of the model on the GPU; -1 is all.")] = -1
    licence: Annotated[
        str | None, note("SPDX id, or the name of the model's own terms.", "Apache-2.0")
    ] = None
    quantization: Annotated[str | None, note("How the weights are rounded.", "int4")] = None


class VllmTable(_EngineTable, frozen=True, kw_only=True, tag="vllm", tag_field="kind"):
    """vLLM, which the host starts."""

    model: Annotated[
        str, note("A folder, or a Hugging Face id that vLLM fetches itself (it needs the network).")
    ]
    model_id: Annotated[
        str | None, note("The model's Hugging Face id, if it lies in a folder.", "Qwen/Qwen3-8B")
    ] = None
    python: Annotated[
        str | None,
        note("The Python that has vLLM, if it is not the host's own.", "/opt/vllm/bin/python"),
    ] = None
    image: Annotated[
        str | None, note("The container image that has vLLM.", "docker.io/vllm/vllm-openai:v0.33.0")
    ] = None
    revision: Annotated[str | None, note("Of the repository; its newest if unset.", "main")] = None
    context_tokens: (
        Annotated[
            int, whole(64, 2**24, "Prompt and answer together, per request; the model's if unset.")
        ]
        | None
    ) = None
    gpu_memory_percent: Annotated[int, whole(1, 99, "Of each GPU's memory, how much to take.")] = 90
    cpu_kv_gib: Annotated[
        int, whole(1, 4096, "GiB for contexts, where vLLM computes on the CPU.")
    ] = 4
    tensor_parallel: Annotated[int, whole(1, 64, "GPUs that share each layer.")] = 1
    pipeline_parallel: Annotated[
        int, whole(1, 64, "GPUs or machines over which the layers are spread.")
    ] = 1
    ray: Annotated[
        bool, note("Use the machines of a Ray cluster, which you start with `ray start`.")
    ] = False
    dtype: Annotated[str, note("auto, bfloat16, float16 or float32.")] = "auto"
    quantization_method: Annotated[
        str | None, note("vLLM's name of it, if the model's files don't say.", "awq")
    ] = None
    template_file: Annotated[
        str | None, note("A chat template in Jinja, in place of the model's own.", "chat.jinja")
    ] = None
    tool_parser: Annotated[
        str | None, note("How this model calls tools, by vLLM's name; no tools if unset.", "hermes")
    ] = None
    reasoning_parser: Annotated[
        str | None, note("How it reasons, by vLLM's name; not told apart if unset.", "qwen3")
    ] = None
    eager: Annotated[
        bool, note("Neither compile nor capture CUDA graphs: ready sooner, slower later.")
    ] = False
    licence: Annotated[
        str | None, note("SPDX id, or the name of the model's own terms.", "Apache-2.0")
    ] = None
    quantization: Annotated[str | None, note("How the weights are rounded.", "bf16")] = None


class VllmUrlTable(OpenAiTable, frozen=True, kw_only=True, tag="vllm-url", tag_field="kind"):
    """A vLLM that already runs."""


class TgiTable(OpenAiTable, frozen=True, kw_only=True, tag="tgi", tag_field="kind"):
    """A Text Generation Inference server that already runs."""


class DemoTable(_EngineTable, frozen=True, kw_only=True, tag="demo", tag_field="kind"):
    """The small model of the demo, on llama.cpp."""

    model_id: Annotated[str | None, note("What to call it instead.", "me/my-model")] = None
    context_tokens: Annotated[int, whole(64, 2**24, "Prompt and answer together, per request.")] = (
        2048
    )
    threads: Annotated[int, whole(0, 1024, "CPU threads; 0 takes half of the cores.")] = 0


class FakeTable(_EngineTable, frozen=True, kw_only=True, tag="fake", tag_field="kind"):
    """An engine that says the same words always; for rehearsals."""

    model_id: Annotated[str | None, note("What to call its model.", "sparewatt/fake")] = None


EngineTable = (
    LlamacppTable
    | LlamaServerTable
    | VllmTable
    | OpenAiTable
    | VllmUrlTable
    | TgiTable
    | DemoTable
    | FakeTable
)


class TimeoutsTable(_Table, frozen=True):
    """When an engine counts as hung."""

    head_s: Annotated[float, seconds(3600, "From a request to the head of its answer.")] = 60.0
    token_s: Annotated[float, seconds(3600, "Between two pieces of an answer.")] = 60.0
    load_s: Annotated[
        float, seconds(86_400, "From an engine's start, or its last word, to its readiness.")
    ] = 300.0


class HostFile(_Table, frozen=True):
    """The whole file."""

    host: HostTable = HostTable()
    price: PriceTable = PriceTable()
    engine: Annotated[tuple[EngineTable, ...], msgspec.Meta(max_length=ENGINES_MAX)] = ()
    timeouts: TimeoutsTable = TimeoutsTable()
    price_policy: PriceTerms = PriceTerms()
    schedule: Schedule = Schedule()
    access: AccessTerms = AccessTerms()
    per_client: ClientTerms = ClientTerms()
    idle: IdleTerms = IdleTerms()
    heat: HeatTerms = HeatTerms()
    power: PowerTerms = PowerTerms()


def keys_of(table: type[msgspec.Struct]) -> Mapping[str, msgspec.Meta]:
    """Return a table's keys in their order, each with its comment and example."""
    hints = typing.get_type_hints(table, include_extras=True)
    return {field.name: _mark(hints[field.name]) for field in msgspec.structs.fields(table)}


def table_type(name: str) -> type[msgspec.Struct]:
    """Return the type of a table that stands once in the file, e.g. ``host``."""
    hint: object = typing.get_type_hints(HostFile)[name]
    assert isinstance(hint, type)
    assert issubclass(hint, msgspec.Struct)
    return hint


def engine_kinds() -> Mapping[str, type[msgspec.Struct]]:
    """Return the tables of all kinds of engine by their name."""
    tables: tuple[type[msgspec.Struct], ...] = typing.get_args(EngineTable)
    return {str(table.__struct_config__.tag): table for table in tables}


def _mark(hint: object) -> msgspec.Meta:
    """Return what ``note`` or ``whole`` said of a key; it may stand inside ``… | None``."""
    for part in (hint, *typing.get_args(hint)):
        for mark in getattr(part, "__metadata__", ()):
            if isinstance(mark, msgspec.Meta):
                return mark
    return msgspec.Meta()
