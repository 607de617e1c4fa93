"""What opens over a page: a question, a choice, a form, a text."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.widgets import Button, Checkbox, Input, Label, OptionList, Select, Static
from textual.widgets.option_list import Option
from textual.worker import WorkType

from tui.client import CommandRefusedError
from tui.model.fields import Field, FieldError, Kind, at_fault, read, typed
from tui.model.words import clean
from tui.widgets import DIM_COLOR, GOOD_COLOR

Submit = Callable[[Sequence[tuple[str, object]]], Awaitable[None]]
INPUT_CHARACTERS_MAX = 256 * 1024  # as many as the control API takes


class AskScreen(ModalScreen[bool]):
    """Asks yes or no before something is done.

    Args:
        title: The question.
        text: What comes of it; plain text.
        yes: What the yes is called.
        no: What the no is called.
    """

    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, title: str, text: str, *, yes: str, no: str = "cancel") -> None:
        super().__init__()
        self._title, self._text, self._yes, self._no = title, text, yes, no

    def compose(self) -> ComposeResult:
        """Lay out the question."""
        with VerticalScroll(classes="dialog", can_focus=False):
            yield Static(Text(self._title, style="bold"), classes="dialog-title")
            yield Static(Text(self._text), classes="dialog-text")
            with Horizontal(classes="buttons"):
                yield Button(Text(f"y  {self._yes}"), id="yes", variant="primary", compact=True)
                yield Button(Text(f"n  {self._no}"), id="no", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer by mouse."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:  # noqa: FBT001 - Textual calls it by position
        """Close with the answer."""
        self.dismiss(answer)


class HelpScreen(ModalScreen[None]):
    """What the keys do and what the figures mean; its text is markup."""

    BINDINGS = [Binding("escape,question_mark,q,enter", "dismiss", "Close")]  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Lay out the page."""
        with VerticalScroll(classes="dialog"):
            yield Static(Text.from_markup(self._text), id="help")


class ChoiceScreen(ModalScreen[str | None]):
    """Lets one of a few be chosen.

    Args:
        title: What is chosen.
        choices: Names and what they mean.
    """

    BINDINGS = [Binding("escape,q", "dismiss(None)", "Cancel")]  # noqa: RUF012

    def __init__(self, title: str, choices: Mapping[str, str]) -> None:
        super().__init__()
        self._title, self._choices = title, choices

    def compose(self) -> ComposeResult:
        """Lay out the choices."""
        with VerticalScroll(classes="dialog", can_focus=False):
            yield Static(Text(self._title, style="bold"), classes="dialog-title")
            options = [
                Option(Text.assemble((f"{name:<14}", "bold"), (meaning, "#8b949e")), id=name)
                for name, meaning in self._choices.items()
            ]
            yield OptionList(*options, id="choices", compact=True)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Close with what was chosen."""
        self.dismiss(event.option_id)


class Tick(Checkbox):
    """A switch whose state is a mark and a word, so that it can be read without its colours."""

    WORDS = ("[ ] off", "[x] on")

    def render(self) -> Content:
        """Draw the mark and the word."""
        style = f"bold {GOOD_COLOR}" if self.value else DIM_COLOR
        return Content.styled(self.WORDS[self.value], style)

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """Return the width of the longer one."""
        return max(map(len, self.WORDS))


class FormScreen(ModalScreen[bool]):
    """Fields to fill in; open until the host took them or the owner gave up.

    Args:
        title: Of the form.
        fields: In their order.
        values: By path, what they hold now.
        submit: Passes the fields that were changed on; what it refuses is shown at its field.
        first: The path of the field that has the cursor; empty for the first one.
        is_whole: Whether all fields are passed on, changed or not.
    """

    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("ctrl+s", "save", "Save"),
        Binding("escape", "dismiss(False)", "Cancel"),
        Binding("down", "app.focus_next", show=False),
        Binding("up", "app.focus_previous", show=False),
    ]

    def __init__(
        self,
        title: str,
        fields: Sequence[Field],
        values: Mapping[str, object],
        submit: Submit,
        *,
        first: str = "",
        is_whole: bool = False,
    ) -> None:
        super().__init__()
        self._title, self._fields, self._values = title, fields, values
        self._submit, self._first, self._is_whole = submit, first, is_whole

    def compose(self) -> ComposeResult:
        """Lay out the fields."""
        with VerticalScroll(classes="dialog", can_focus=False):
            yield Static(Text(self._title, style="bold"), classes="dialog-title")
            for index, field in enumerate(self._fields):
                with Horizontal(classes="field"):
                    yield Label(Text(field.label), classes="field-label")
                    yield self._editor(field, index)
                    yield Label(Text(field.hint), classes="field-hint")
                yield Static(id=f"error-{index}", classes="field-error")
            yield Static(id="form-error", classes="field-error")
            with Horizontal(classes="buttons"):
                yield Button("^s save", id="save", variant="primary", compact=True)
                yield Button("esc cancel", id="cancel", compact=True)

    def _editor(self, field: Field, index: int) -> Input | Select[str] | Checkbox:
        value, widget_id = self._values.get(field.path), f"field-{index}"
        if field.kind is Kind.SWITCH:
            return Tick("", bool(value), id=widget_id, compact=True)
        if field.kind is Kind.CHOICE:
            chosen = str(value) if value in field.choices else field.choices[0]
            options = [(choice, choice) for choice in field.choices]
            return Select(options, value=chosen, allow_blank=False, id=widget_id, compact=True)
        return Input(
            typed(field, value),
            id=widget_id,
            compact=True,
            password=field.kind is Kind.SECRET,
            max_length=INPUT_CHARACTERS_MAX,
        )

    def on_mount(self) -> None:
        """Put the cursor where the owner pointed at."""
        paths = [field.path for field in self._fields]
        index = paths.index(self._first) if self._first in paths else 0
        self.query_one(f"#field-{index}").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Save or give up by mouse."""
        if event.button.id == "save":
            self.action_save()
        else:
            self.dismiss(False)

    def on_input_submitted(self, _: Input.Submitted) -> None:
        """Save by enter."""
        self.action_save()

    def action_save(self) -> None:
        """Read the fields and pass them on."""
        for error in self.query(".field-error").results(Static):
            error.display = False
        values: list[tuple[str, object]] = []
        bad = False
        for index, field in enumerate(self._fields):
            try:
                value = self._read(field, index)
            except FieldError as error:
                self._show_error(field, str(error), has_focus=not bad)
                bad = True
                continue
            if self._is_whole or value != self._values.get(field.path):
                values.append((field.path, value))
        if bad:
            return
        if not values:
            self.dismiss(False)
            return
        work: WorkType[None] = partial(self._pass_on, values)
        self.run_worker(work, exclusive=True, group="submit")

    def _read(self, field: Field, index: int) -> object:
        editor = self.query_one(f"#field-{index}")
        if isinstance(editor, Checkbox):
            return editor.value
        if isinstance(editor, Select):
            return editor.value
        assert isinstance(editor, Input)
        return read(field, editor.value)

    async def _pass_on(self, values: Sequence[tuple[str, object]]) -> None:
        try:
            await self._submit(values)
        except CommandRefusedError as error:
            field = at_fault(self._fields, error.param, str(error))
            self._show_error(field, str(error), has_focus=True)
        else:
            self.dismiss(True)

    def _show_error(self, field: Field | None, message: str, *, has_focus: bool) -> None:
        index = self._fields.index(field) if field is not None else None
        name = "#form-error" if index is None else f"#error-{index}"
        error = self.query_one(name, Static)
        error.update(Text(f"✖ {clean(message)}"))
        error.display = True
        if index is not None and has_focus:
            self.query_one(f"#field-{index}").focus()
        error.scroll_visible(animate=False)
