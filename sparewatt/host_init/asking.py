"""How questions are asked: in the terminal, or not at all."""

import getpass
from collections.abc import Callable
from typing import Protocol, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm, Prompt

from p2p.errors import SparewattError
from sparewatt.problems import Problem

AnswerT = TypeVar("AnswerT")
WRONG_ANSWERS_MAX = 20  # then it is a program that answers, and it will not learn


class Asker(Protocol):
    """Asks the owner."""

    @property
    def is_person(self) -> bool:
        """Whether somebody answers; else every answer is the default."""

    def text(self, question: str, default: str, check: Callable[[str], AnswerT]) -> AnswerT:
        """Return an answer that a check takes, which says why if it does not.

        Args:
            question: Without a colon.
            default: What an empty answer means; empty if there is none.
            check: Returns the value of an answer, or raises ``Problem`` or ``BadParameter``.
        """

    def yes(self, question: str, *, default: bool) -> bool:
        """Return whether the answer is yes."""

    def secret(self, question: str) -> str:
        """Return an answer that is not shown while it is typed; empty for none."""


class Terminal:
    """Asks on a terminal."""

    is_person = True

    def __init__(self, console: Console) -> None:
        self._console = console

    def text(self, question: str, default: str, check: Callable[[str], AnswerT]) -> AnswerT:
        """Return an answer that a check takes."""
        shown = f"[bold]{escape(question)}[/]"
        if default:
            shown += f" [cyan]\\[{escape(default)}][/]"
        for _ in range(WRONG_ANSWERS_MAX):
            answer = Prompt.ask(shown, console=self._console, default=default, show_default=False)
            try:
                return check(answer.strip())
            except (SparewattError, click.ClickException) as error:
                text = error.format_message() if isinstance(error, Problem) else _words(error)
                self._console.print(f"  {text}", style="red", markup=False, highlight=False)
        raise Problem("too many answers that can't be used", "sparewatt host init, again")

    def yes(self, question: str, *, default: bool) -> bool:
        """Return whether the answer is yes."""
        hint = "Y/n" if default else "y/N"
        shown = f"[bold]{escape(question)}[/] [cyan]\\[{hint}][/]"
        return Confirm.ask(
            shown, console=self._console, default=default, show_default=False, show_choices=False
        )

    def secret(self, question: str) -> str:
        """Return an answer that is not shown while it is typed.

        The prompt comes after the terminal's echo was turned off: rich's own comes before, and
        would show what is pasted in between.
        """
        return getpass.getpass(f"{question}: ").strip()


class Defaults:
    """Takes every default, and says what was taken."""

    is_person = False

    def __init__(self, console: Console) -> None:
        self._console = console

    def text(self, question: str, default: str, check: Callable[[str], AnswerT]) -> AnswerT:
        """Return the default.

        Raises:
            Problem: If it can't be used.
        """
        try:
            value = check(default)
        except click.BadParameter as error:
            raise Problem(f"{question}: {error.message}", "say it with a flag") from error
        self._console.print(f"{escape(question)}: [cyan]{escape(default or '(none)')}[/]")
        return value

    def yes(self, question: str, *, default: bool) -> bool:
        """Return the default."""
        self._console.print(f"{escape(question)} [cyan]{'yes' if default else 'no'}[/]")
        return default

    def secret(self, question: str) -> str:
        """Return nothing: a secret has no default."""
        return ""


def _words(error: Exception) -> str:
    return error.message if isinstance(error, click.ClickException) else str(error)
