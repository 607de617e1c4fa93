"""Makes an engine's image with nothing but the package registries, and shows how far it is."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from peer.host.sandbox.image_plan import (
    USELESS,
    ImageRecipe,
    debootstrap_command,
    import_command,
    pip_command,
    requirements_of,
)
from sparewatt.problems import Problem

Tell = Callable[[str], None]
"""Takes one line about what is being done."""

STEP_SECONDS_MAX: Final = 3600.0  # a slow line; half a minute here
SPACE_BYTES_MIN: Final = 2 * 1024**3
LINES_KEPT_COUNT: Final = 15
_SBIN: Final = "/usr/sbin:/sbin"


def build_image(recipe: ImageRecipe, engine: str, work: Path | None, tell: Tell) -> None:
    """Make an image and leave nothing else.

    Args:
        recipe: Of what.
        engine: ``podman`` or ``docker``, who gets it.
        work: Where to make it; the system's directory for temporary files if None.
        tell: Hears of each step.

    Raises:
        Problem: If something is missing or a step fails; says what it wrote.
    """
    debootstrap, container_program = _require(engine)
    with _work_directory(work) as root:
        if shutil.disk_usage(root).free < SPACE_BYTES_MIN:
            raise Problem(f"less than 2 GiB are free in {root.parent}", "name another with --work")
        tell("a small Debian from its packages")
        _run(debootstrap_command(debootstrap, recipe, str(root)), tell)
        tell(f"{', '.join(recipe.wheels)} from Python's packages")
        _run(
            pip_command(sys.executable, platform.machine(), _requirements(recipe), str(root)), tell
        )
        for name in USELESS:
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir(parents=True, exist_ok=True)
        tell(f"importing it into {engine}")
        _import(container_program, recipe, root)


def _require(engine: str) -> tuple[str, str]:
    """Return where debootstrap and the container engine are."""
    path = f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"
    container_program = shutil.which(engine, path=path)
    if container_program is None:
        raise Problem(f"{engine} is not installed", f"e.g. sudo apt install {engine}")
    if os.geteuid() != 0:
        raise Problem(
            "an image is made from Debian's packages by root only",
            f"sudo, or with a registry of images: {engine} build containers/engine-llamacpp",
        )
    debootstrap = shutil.which("debootstrap", path=path)
    if debootstrap is None:
        raise Problem("debootstrap is not installed", "e.g. sudo apt install debootstrap")
    return debootstrap, container_program


def _requirements(recipe: ImageRecipe) -> list[str]:
    asked_for = importlib.metadata.requires("sparewatt") or []
    installed: dict[str, str] = {}
    for name in recipe.wheels:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return requirements_of(recipe, asked_for, installed)


@contextlib.contextmanager
def _work_directory(parent: Path | None) -> Iterator[Path]:
    """Make an empty directory; afterwards remove it, but nothing that is mounted in it."""
    root = Path(tempfile.mkdtemp(prefix="sparewatt-image-", dir=parent))
    root.chmod(0o755)
    try:
        yield root
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(root)], check=False)


def _run(command: Sequence[str], tell: Tell) -> None:
    """Run a step and pass on each line that it writes."""
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"}
    kept: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(STEP_SECONDS_MAX, process.kill)
        timer.start()
        for line in process.stdout:
            kept = [*kept[1 - LINES_KEPT_COUNT :], line.rstrip()]
            tell(line.strip())
        timer.cancel()
    if process.returncode != 0:
        said = "\n".join(kept)
        raise Problem(f"{Path(command[0]).name} failed:\n{said}", "mend what it names")


def _import(program: str, recipe: ImageRecipe, root: Path) -> None:
    archive = ["tar", "--directory", str(root), "--numeric-owner", "--create", "."]
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as tar:
        done = subprocess.run(
            import_command(program, recipe),
            stdin=tar.stdout,
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS_MAX,
            check=False,
        )
    if done.returncode != 0 or tar.returncode != 0:
        raise Problem(f"{program} did not take the image: {done.stderr.strip()}", "mend that")
