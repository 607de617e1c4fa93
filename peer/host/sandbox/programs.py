"""Which directories of this machine hold the programs that an engine needs, and nothing else."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import p2p
import peer
from peer.host.engines import keeper
from peer.host.engines.plan import Mount
from peer.host.sandbox.container_plan import EMPTY_IMAGE
from peer.host.sandbox.settings import Base

PACKAGES_INSIDE = PurePosixPath("/opt/sparewatt")
LIBRARIES_INSIDE = PurePosixPath("/opt/engine")  # where ``image`` installs an engine's packages
IMAGE_PYTHON = "/usr/bin/python3"
# The system's programs and libraries, with what they look up to find each other.
_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/opt/rocm",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
)


def machine_base() -> Base:
    """Return a base of this machine's own programs: its system and this Python, read-only.

    Nothing has to be built or fetched for it, and an engine runs from where it is installed.
    """
    paths = [Path(each) for each in _SYSTEM]
    paths += [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent]
    paths += [_package_dir(p2p.__file__), _package_dir(peer.__file__)]
    return Base(
        image=EMPTY_IMAGE,
        mounts=tuple(same_place(outermost(paths))),
        python=sys.executable,
        keeper=str(Path(keeper.__file__).resolve()),
        env={},
    )


def image_base(image: str) -> Base:
    """Return a base of an engine's image; of this machine it sees our two packages alone."""
    outside = (_package_dir(p2p.__file__), _package_dir(peer.__file__))
    packages = tuple(Mount(each, PACKAGES_INSIDE / each.name) for each in outside)
    inside = PACKAGES_INSIDE / "peer" / Path(keeper.__file__).resolve().relative_to(outside[1])
    return Base(
        image=image,
        mounts=packages,
        python=IMAGE_PYTHON,
        keeper=str(inside),
        env={"PYTHONPATH": f"{PACKAGES_INSIDE}:{LIBRARIES_INSIDE}"},
    )


def program_paths(program: str) -> list[Path]:
    """Return what a program needs that lies outside the system's directories.

    Args:
        program: The first word of a command, as a path.

    Returns:
        For a Python of a virtual environment that environment and the Python that it was made
        from; else the directory that the program lies in, with its libraries.
    """
    path = Path(program)
    if not path.is_absolute() or not path.exists():
        return []
    settings = path.parent.parent / "pyvenv.cfg"
    if not settings.is_file():
        return [path.parent, path.resolve().parent]
    real = path.resolve()
    return [path.parent.parent, real.parent.parent if real.parent.name == "bin" else real.parent]


def same_place(paths: Iterable[Path]) -> list[Mount]:
    """Return mounts that show directories where they are."""
    return [Mount(path, PurePosixPath(path)) for path in paths]


def outermost(paths: Iterable[Path]) -> list[Path]:
    """Return those that exist, without those that lie in others of them; parents come first."""
    kept: list[Path] = []
    for path in sorted({Path(os.path.abspath(each)) for each in paths if each.exists()}):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def _package_dir(file: str | None) -> Path:
    assert file is not None
    return Path(file).resolve().parent
