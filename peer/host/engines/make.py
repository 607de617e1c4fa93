"""From what an owner wants to the engine that does it."""

import sys
from pathlib import Path
from typing import assert_never

from p2p.paths import socket_path
from peer.host.config import (
    EngineTimeouts,
    FakeSpec,
    HostedEngine,
    LlamacppSpec,
    LlamaServerSpec,
    OpenAiSpec,
    VllmSpec,
)
from peer.host.engines.api import Engine
from peer.host.engines.fake import FakeEngine
from peer.host.engines.launcher import Launcher, NativeLauncher
from peer.host.engines.llama_server import LlamaServerRecipe
from peer.host.engines.llamacpp import LlamacppRecipe
from peer.host.engines.openai import OpenAiEngine
from peer.host.engines.recipe import SOCKET_NAME, Recipe
from peer.host.engines.supervised import EnginePlace, SupervisedEngine
from peer.host.engines.vllm import VllmRecipe
from peer.http.loop import Loop


def make_engine(
    hosted: HostedEngine,
    loop: Loop,
    data_dir: Path,
    timeouts: EngineTimeouts,
    launcher: Launcher | None = None,
) -> Engine:
    """Return an engine of a host; nothing runs yet.

    Args:
        hosted: What the owner wants.
        loop: Moves the bytes.
        data_dir: The host's; the engine's log and socket lie in it.
        timeouts: When it counts as hung.
        launcher: How a child is started; natively if None.
    """
    launcher = launcher or NativeLauncher()
    match hosted.spec:
        case LlamacppSpec() as spec:
            recipe: Recipe = LlamacppRecipe(spec)
        case LlamaServerSpec() as spec:
            recipe = LlamaServerRecipe(spec)
        case VllmSpec() as spec:
            recipe = VllmRecipe(spec, uses_image=_uses_image(spec, launcher))
        case OpenAiSpec() as spec:
            return OpenAiEngine(spec, loop, timeouts=timeouts)
        case FakeSpec() as spec:
            return FakeEngine(spec, idle_s=timeouts.token_s)
        case _:
            assert_never(hosted.spec)
    return SupervisedEngine(
        recipe,
        loop,
        launcher=launcher,
        place=engine_place(hosted, data_dir),
        timeouts=timeouts,
    )


def _uses_image(spec: VllmSpec, launcher: Launcher) -> bool:
    """Return whether vLLM is an image's: named by the owner, and not as a native process."""
    is_named = bool(spec.image) or launcher.python != sys.executable
    return is_named and launcher.name != NativeLauncher.name


def engine_place(hosted: HostedEngine, data_dir: Path) -> EnginePlace:
    """Return where an engine of a host lives."""
    return EnginePlace(
        socket_dir=socket_path(data_dir, f"engine-{hosted.name}/{SOCKET_NAME}").parent,
        log_path=data_dir / f"engine-{hosted.name}.log",
        cache_dir=data_dir / "engine-cache",
        slots=hosted.slots,
    )
