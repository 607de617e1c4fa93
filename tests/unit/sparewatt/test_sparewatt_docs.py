"""What the documents tell people to type exists, and where they point to is there."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from sparewatt.cli import main

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


def shell_lines(text: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def sparewatt_commands() -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        for line in shell_lines(document.read_text(encoding="utf-8")):
            parts = re.split(r"[;|]| > ", line.split("  #")[0])
            found += [
                (document.name, part.strip())
                for part in parts
                if part.strip().startswith("sparewatt ")
            ]
    return found


@pytest.mark.parametrize(("document", "line"), sparewatt_commands())
def test_command_in_a_document_is_understood(document: str, line: str):
    words = shlex.split(line)[1:]
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        if command.invoke_without_command and (not words or words[0].startswith("-")):
            break
        inner = command.get_command(context, words.pop(0))
        assert inner is not None, f"{document}: {line}"
        command, context = inner, click.Context(inner, parent=context)
    command.make_parser(context).parse_args(words)  # raises for a flag that does not exist


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_a_document_lead_somewhere(document: Path):
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_in_a_document_exist(document: Path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in shell_lines(document.read_text(encoding="utf-8")):
        words = line.split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), line


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    for requirement in wanted:
        name = re.split(r"[<>=\[ ]", requirement)[0]
        assert re.search(rf"\b{re.escape(name)}\b", text), name
