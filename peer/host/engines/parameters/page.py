"""The page of all tables: ``python -m peer.host.engines.parameters.page > docs/parameters.md``."""

import sys
from collections.abc import Iterator, Mapping

import msgspec

from peer.host.engines.abilities import FEATURES, MINIMUM, Ability
from peer.host.engines.parameters.images import IMAGE_CHARS_MAX, IMAGE_SIDE_PX_MAX, IMAGES_MAX
from peer.host.engines.parameters.messages import (
    MESSAGE_RULES,
    MESSAGES_COUNT_MAX,
    PART_RULES,
    PARTS_COUNT_MAX,
)
from peer.host.engines.parameters.prepare import TABLES
from peer.host.engines.parameters.rules import Action, Rule, Table

_HEAD = """# What reaches an engine

*Made from the code by `python -m peer.host.engines.parameters.page > docs/parameters.md`;
a test fails if they differ.*

A gateway passes on what its client sent. The host decides, parameter by parameter, what its engine
gets. What would cost the GPU without being paid for, or reach out of the engine, is refused; what
an engine would leave out in silence is refused too, with an error (400, `unsupported_parameter`)
that names it. A parameter that stands in no table is refused.

| rule | what happens |
|---|---|
| forward | checked, and passed on as it is |
| clamp | brought into the bounds, and passed on |
| force | the host's own value; the client's counts for nothing |
| drop | left out: the answer is what was asked for without it too |
| refuse | an error, but for the values that ask for nothing, which are left out |

`null` always means that a parameter was not given.

## The self-test

A table says what may be asked; whether this engine with this model does it, the host tries before
it announces the model: with requests of a few tokens, made the way a client's are. "Needs" names
the trial in the tables below: where it failed, the parameter is refused, and the flag is not in the
record. `sparewatt status` and the log have the results.

| trial | what must happen | flag in the record |
|---|---|---|
"""
_TRIALS: Mapping[Ability, str] = {
    Ability.STREAM: "events, a reason for the end, and the end, in that order",
    Ability.USAGE: "the counts come, and fit the answer",
    Ability.MAX_TOKENS: "the answer ends at the bound",
    Ability.STOP: "a text of the answer, given as `stop`, ends it before that text",
    Ability.SEED: "two answers of one seed, at a high temperature, are the same",
    Ability.LOGPROBS: "each token has its log probability and those asked for beside it",
    Ability.JSON_SCHEMA: "an answer is JSON with the one value that its schema allows",
    Ability.TOOLS: "a required function is called, with arguments of its schema",
    Ability.TOKEN_IDS: "as many token ids come as tokens are counted",
    Ability.CONTINUE: "given the first half of its answer, the engine says the second",
    Ability.IMAGES: "a small image is taken, and counted as tokens",
}


def page() -> str:
    """Return the whole page."""
    return "\n".join([_HEAD.rstrip("\n"), *_lines()]) + "\n"


def _lines() -> Iterator[str]:
    for ability, trial in _TRIALS.items():
        flag = f"`{FEATURES[ability].name}`" if ability in FEATURES else ""
        must = " (else the model is not announced)" if ability in MINIMUM else ""
        yield f"| {ability.value} | {trial}{must} | {flag} |"
    yield from ("", "## Messages", "")
    yield (
        f"At most {MESSAGES_COUNT_MAX} messages, of at most {PARTS_COUNT_MAX} parts each. A last "
        "message of the assistant is gone on with, where the engine can, and refused elsewhere."
    )
    yield ""
    yield from _table(MESSAGE_RULES, "field of a message")
    yield ""
    yield from _table(PART_RULES, "type of a part")
    yield (
        f"\nImages: at most {IMAGES_MAX} a message, {IMAGE_CHARS_MAX} characters of URL and "
        f"{IMAGE_SIDE_PX_MAX} pixels a side each."
    )
    shared = _shared(list(TABLES.values()))
    yield from ("", "## The same for all engines", "")
    yield from _table(shared, "parameter")
    for table in TABLES.values():
        own = {name: rule for name, rule in table.rules.items() if name not in shared}
        yield from ("", f"## {table.title}", "")
        yield from _remarks(table)
        yield from _table(own, "parameter")


def _shared(tables: list[Table]) -> Mapping[str, Rule]:
    first, *others = tables
    return {
        name: rule
        for name, rule in first.rules.items()
        if all(other.rules.get(name) is rule for other in others)
    }


def _remarks(table: Table) -> Iterator[str]:
    forced = ", ".join(f"`{name}`: {_json(value)}" for name, value in table.forced.items())
    if forced:
        yield f"Set with every request: {forced}."
        yield ""
    for clash in table.clashes:
        yield f"`{clash.refused}` with `{clash.beside}` is refused: {clash.why}."
        yield ""
    if table.alone:
        names = ", ".join(f"`{name}`" for name in table.alone)
        yield f"Refused with a last message of the assistant: {names}."
        yield ""
    if table.forbidden_text:
        yield f"A message that holds `{table.forbidden_text}` is refused: it would be fetched."
        yield ""


def _table(rules: Mapping[str, Rule], first: str) -> Iterator[str]:
    yield f"| {first} | rule | accepted | needs | why |"
    yield "|---|---|---|---|---|"
    for name, rule in sorted(rules.items()):
        needs = rule.needs.value if rule.needs is not None else ""
        cells = (f"`{name}`", rule.action.value, _accepted(rule), needs, rule.why)
        yield "| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"


def _accepted(rule: Rule) -> str:
    neutral = " or ".join(f"`{_json(value)}`" for value in rule.neutral)
    if rule.action is Action.REFUSE:
        return f"only {neutral}" if neutral else ""
    words = rule.expects
    if rule.action is Action.CLAMP and rule.high:
        words += f", brought to {rule.low} to {rule.high}"
    if rule.sent_as:
        words += f" (sent as `{rule.sent_as}`)"
    return f"{words}; {neutral} is left out" if neutral else words


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


if __name__ == "__main__":
    sys.stdout.write(page())
