"""What an engine's image is made of, and the commands that make it. A core.

Without a registry of images there are still Debian's packages and Python's: ``debootstrap`` makes
a small system, ``pip`` puts the engine's wheels beside it, and the directory is imported as it is.
This package is not in the image: the host shows it its own, read-only, so that an image fits every
later version. With a registry, ``containers/`` has the same as container files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

DEBIAN: Final = "bookworm"
PYTHON_VERSION: Final = "3.11"  # Debian's of that name
GLIBC_MINOR_MAX: Final = 36  # Debian's of that name
LIBRARIES: Final = "opt/engine"
_GLIBC_MINORS: Final = (36, 35, 34, 31, 28, 27, 24, 17)
# Of no use to a program, and a third of the size.
USELESS: Final = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "dev",
)


@dataclass(frozen=True, slots=True)
class ImageRecipe:
    """An engine's image.

    Attributes:
        engine: Its name on the command line.
        debian: Packages beside the smallest system.
        wheels: Distributions whose versions are those that this package asks for or runs with.
    """

    engine: str
    debian: tuple[str, ...]
    wheels: tuple[str, ...]

    @property
    def tag(self) -> str:
        """The image's name, where podman and Docker find it."""
        return f"localhost/sparewatt/engine-{self.engine}:latest"


RECIPES: Final[Mapping[str, ImageRecipe]] = {
    recipe.engine: recipe
    for recipe in (
        ImageRecipe(
            "llamacpp",
            ("python3-minimal", "libpython3-stdlib", "libgomp1"),
            ("xllamacpp", "msgspec", "base58"),
        ),
    )
}


def debootstrap_command(program: str, recipe: ImageRecipe, root: str) -> list[str]:
    """Return the command that makes a Debian system in an empty directory; it needs root."""
    include = ",".join(recipe.debian)
    return [program, "--variant=minbase", f"--include={include}", DEBIAN, root]


def pip_command(python: str, machine: str, requirements: Sequence[str], root: str) -> list[str]:
    """Return the command that installs wheels for the Python inside, whatever runs outside.

    Args:
        python: One that has pip.
        machine: ``x86_64`` or ``aarch64``.
        requirements: What to install, with versions.
        root: The directory of the system.
    """
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS]
    platforms.append(f"manylinux2014_{machine}")
    words = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile"]
    words += ["--no-deps", "--only-binary", ":all:", "--implementation", "cp"]
    words += ["--python-version", PYTHON_VERSION, "--target", f"{root}/{LIBRARIES}"]
    return words + [word for each in platforms for word in ("--platform", each)] + [*requirements]


def import_command(program: str, recipe: ImageRecipe) -> list[str]:
    """Return the command that reads a system as a tar archive and makes an image of it."""
    changes = (f"ENV PYTHONPATH=/{LIBRARIES}", "USER 65532:65532", "WORKDIR /tmp")
    words = [word for each in changes for word in ("--change", each)]
    return [program, "import", *words, "-", recipe.tag]


def requirements_of(
    recipe: ImageRecipe, asked_for: Sequence[str], installed: Mapping[str, str]
) -> list[str]:
    """Return what to install, each with a version.

    Args:
        recipe: The image's.
        asked_for: This package's own requirements, as in ``xllamacpp==1.2; extra == "demo"``.
        installed: The versions of distributions that are installed here.

    Raises:
        KeyError: If a version is known from neither.
    """
    pins = {
        name: text.partition(";")[0].strip()
        for text in asked_for
        for name in [text.partition("==")[0].strip()]
        if "==" in text.partition(";")[0]
    }
    return [pins.get(name) or f"{name}=={installed[name]}" for name in recipe.wheels]
