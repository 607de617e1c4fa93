"""What a table of parameters is made of: rules, and the small checks of single values."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from peer.host.engines.abilities import MINIMUM, Ability


class Unsupported(str):
    """A problem that is no mistake of the client: this engine can't do it."""

    __slots__ = ()


Check = Callable[[object], str]
"""Returns what is wrong with a value, to be read after the parameter's name; empty if nothing."""


class Action(enum.Enum):
    """What happens to a parameter."""

    FORWARD = "forward"
    CLAMP = "clamp"
    FORCE = "force"
    DROP = "drop"
    REFUSE = "refuse"


def anything(value: object) -> str:
    """Accept any value."""
    return ""


@dataclass(frozen=True, slots=True)
class Rule:
    """What to do with one parameter.

    Attributes:
        why: The reason, for the error's text and for the page of all tables.
        check: What is wrong with a value, if anything; asked for FORWARD and CLAMP.
        expects: What ``check`` wants, in words.
        low: For CLAMP: the least value.
        high: For CLAMP: the greatest value.
        neutral: Values that ask for nothing: they are dropped, whatever the action.
        needs: What the engine must be able to do; without it, the rule is a refusal.
        sent_as: The engine's own name of the parameter, if it has another one.
    """

    action: Action
    why: str = ""
    check: Check = anything
    expects: str = ""
    low: int = 0
    high: int = 0
    neutral: tuple[object, ...] = ()
    needs: Ability | None = None
    sent_as: str = ""


@dataclass(frozen=True, slots=True)
class Clash:
    """Two parameters that an engine can't take together; the first one is refused."""

    refused: str
    beside: str
    why: str


@dataclass(frozen=True, slots=True)
class Table:
    """All that is known of one kind of engine.

    Attributes:
        title: For people.
        rules: By parameter; one that is in no rule is refused.
        forced: What the engine gets with every request.
        clashes: Pairs that are refused.
        continues: What makes the engine go on with a last message of the assistant; None if
            nothing does.
        alone: What this engine can't do when it goes on with a message.
        forbidden_text: What must not stand in a message, because this engine would act on it.
    """

    kind: str
    title: str
    rules: Mapping[str, Rule]
    forced: Mapping[str, object] = field(default_factory=dict)
    clashes: tuple[Clash, ...] = ()
    continues: Mapping[str, object] | None = None
    alone: tuple[str, ...] = ()
    forbidden_text: str = ""

    @property
    def abilities(self) -> frozenset[Ability]:
        """What the table lets clients ask for; nothing else can be announced."""
        found = {rule.needs for rule in self.rules.values() if rule.needs is not None}
        if self.continues is not None:
            found.add(Ability.CONTINUE)
        return MINIMUM | found | {Ability.IMAGES}  # what a message may hold is the same for all


# -- rules -------------------------------------------------------------------------------------


def forward(
    check: Check,
    expects: str,
    why: str = "",
    *,
    needs: Ability | None = None,
    neutral: tuple[object, ...] = (),
    sent_as: str = "",
) -> Rule:
    """Pass a checked value on."""
    return Rule(
        Action.FORWARD,
        why,
        check,
        expects,
        needs=needs,
        neutral=neutral,
        sent_as=sent_as,
    )


def clamp(low: int, high: int, why: str, *, needs: Ability | None = None) -> Rule:
    """Pass a whole number on, brought into bounds."""
    return Rule(
        Action.CLAMP,
        why,
        whole(-(2**31), 2**31 - 1),
        "a whole number",
        low=low,
        high=high,
        needs=needs,
    )


def drop(why: str) -> Rule:
    """Leave a parameter out: the answer is what was asked for without it too."""
    return Rule(Action.DROP, why)


def force(why: str) -> Rule:
    """Ignore the client's value: the host sets its own."""
    return Rule(Action.FORCE, why)


def refuse(why: str, *neutral: object) -> Rule:
    """Refuse all values but those that ask for nothing; null is always one of them."""
    return Rule(Action.REFUSE, why, neutral=neutral)


# -- checks of single values -------------------------------------------------------------------


def number(low: float, high: float) -> Check:
    """Want a number within bounds."""
    problem = f"must be {words_of_number(low, high)}"

    def check(value: object) -> str:
        kind = type(value)
        if (kind is int or kind is float) and low <= value <= high:  # type: ignore[operator]
            return ""
        return problem

    return check


def words_of_number(low: float, high: float) -> str:
    """Return how a bounded number is described."""
    return f"a number from {low:g} to {high:g}"


def whole(low: int, high: int) -> Check:
    """Want a whole number within bounds."""
    problem = f"must be a whole number from {low} to {high}"

    def check(value: object) -> str:
        return "" if type(value) is int and low <= value <= high else problem

    return check


def boolean(value: object) -> str:
    """Want true or false."""
    return "" if isinstance(value, bool) else "must be true or false"


def one_of(*allowed: str) -> Check:
    """Want one of some texts."""
    problem = f"must be one of {', '.join(allowed)}"

    def check(value: object) -> str:
        return "" if isinstance(value, str) and value in allowed else problem

    return check


def text(bytes_max: int) -> Check:
    """Want a text that is not empty and not too long."""
    problem = f"must be a text of 1 to {bytes_max} bytes"

    def check(value: object) -> str:
        fits = isinstance(value, str) and 0 < len(value.encode(errors="replace")) <= bytes_max
        return "" if fits else problem

    return check


def list_of(check: Check, count_max: int) -> Check:
    """Want a list of at most so many good values."""

    def check_list(value: object) -> str:
        if not isinstance(value, list) or len(value) > count_max:
            return f"must be a list of at most {count_max} values"
        for index, each in enumerate(value):
            if problem := check(each):
                return within(f"[{index}]", problem)
        return ""

    return check_list


def within(where: str, problem: str) -> str:
    """Return a problem of a part as one of the whole, e.g. ``[2] must be a text``."""
    joined = where + problem if problem[:1] in (".", "[") else f"{where} {problem}"
    return Unsupported(joined) if isinstance(problem, Unsupported) else joined
