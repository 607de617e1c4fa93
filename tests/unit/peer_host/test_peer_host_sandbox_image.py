"""What images are made of, and what the container files say beside it."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from peer.host.sandbox.image_plan import (
    RECIPES,
    debootstrap_command,
    import_command,
    pip_command,
    requirements_of,
)

ROOT = Path(__file__).resolve().parents[3]
RECIPE = RECIPES["llamacpp"]


def pinned() -> list[str]:
    """What an image of this version holds."""
    asked_for = importlib.metadata.requires("sparewatt")
    installed = {name: importlib.metadata.version(name) for name in RECIPE.wheels}
    return requirements_of(RECIPE, asked_for, installed)


def test_image_holds_the_engine_that_this_version_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (engine,) = project["optional-dependencies"]["llamacpp"]
    assert engine in pinned()


def test_version_that_nothing_names_is_that_which_is_installed() -> None:
    made = requirements_of(RECIPE, ["base58>=2"], {"xllamacpp": "1", "msgspec": "2", "base58": "3"})
    assert made == ["xllamacpp==1", "msgspec==2", "base58==3"]


def test_version_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError):
        requirements_of(RECIPE, [], {})


def test_container_file_holds_the_same_versions_as_the_image() -> None:
    text = (ROOT / "containers/engine-llamacpp/Containerfile").read_text()
    for requirement in pinned():
        assert requirement in text
    for package in RECIPE.debian:
        assert package in text


@pytest.mark.parametrize("name", ["engine-llamacpp", "engine-vllm", "host"])
def test_container_file_ends_as_nobody(name) -> None:
    text = (ROOT / "containers" / name / "Containerfile").read_text()
    assert "USER 65532:65532" in text.rpartition("FROM")[2]


def test_commands_name_what_they_make() -> None:
    assert debootstrap_command("debootstrap", RECIPE, "/r")[-2:] == ["bookworm", "/r"]
    pip = pip_command("python", "aarch64", ["a==1"], "/r")
    assert pip[-1] == "a==1"
    assert "manylinux_2_28_aarch64" in pip
    assert "/r/opt/engine" in pip
    words = import_command("podman", RECIPE)
    assert words[-2:] == ["-", "localhost/sparewatt/engine-llamacpp:latest"]
    assert "USER 65532:65532" in words
