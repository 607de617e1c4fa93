"""What a command says when it can't go on: what is wrong, and what to do about it."""

import click


class Problem(click.ClickException):
    """A mistake or a missing piece that the user can mend; exit status 1.

    Attributes:
        advice: What to do, a command where there is one.
    """

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice

    def format_message(self) -> str:
        """Return the message with the advice on a line of its own."""
        return f"{self.message}\n  → {self.advice}" if self.advice else self.message
