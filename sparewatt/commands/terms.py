"""``sparewatt terms``: what a running host serves, when, for whom and for how much."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from p2p.paths import socket_path
from sparewatt.clients import AskError, RefusedError, control_api, number, objects, text
from sparewatt.commands.common import default_data_dir, example
from sparewatt.commands.tui import host_directory
from sparewatt.options import Price, dollars, parse_price
from sparewatt.problems import Problem
from sparewatt.terms_table import terms_table

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(
    r"(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))? (?P<start>[0-9:]{5})-(?P<end>[0-9:]{5})"
)
_PATH = "/v1/terms"
_WINDOW_FORM = "write always, never, or DAYS HH:MM-HH:MM, e.g. mon-fri 22:00-07:00"
_SOURCES = {
    "started": "as its engine was started or loaded",
    "fixed": "fixed by the terms",
    "index": "by the network's index",
}


@dataclass(frozen=True, slots=True)
class _Host:
    """Which host is meant."""

    data_dir: Path
    socket: Path | None


@click.group("terms", invoke_without_command=True, epilog=example("sparewatt terms --data DIR"))
@click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: default_data_dir("host"),
    show_default="the host's",
    help="The host's data directory, or a network's that has one host.",
)
@click.option(
    "--socket",
    metavar="PATH",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The host's control socket, in place of --data.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what the control API says.")
@click.pass_context
def terms_command(
    ctx: click.Context, data_dir: Path, socket: Path | None, *, as_json: bool
) -> None:
    """Show the terms of a running host, and what holds it back; `set` changes them.

    A change holds at once and over restarts, and wins over host.toml until it is reset.
    """
    ctx.obj = _Host(data_dir, socket)
    if ctx.invoked_subcommand is None:
        told = _asked(ctx.obj, "GET")
        click.echo(json.dumps(told, indent=2) if as_json else _summary(told))


@terms_command.command(
    "set",
    epilog=example(
        "sparewatt terms set --slots 2 --price 0.05/0.20",
        "sparewatt terms set --schedule 'mon-fri 22:00-07:00' --schedule 'sat-sun 00:00-24:00'",
        "sparewatt terms set idle.is_on=true heat.limit_celsius=80",
    ),
)
@click.option("--price", metavar="IN/OUT", help="A fixed price, as of `sparewatt host`.")
@click.option("--slots", type=click.IntRange(0, 1024), help="Requests at a time; 0 for all.")
@click.option("--on", "models_on", metavar="MODEL", multiple=True, help="Offer a model.")
@click.option("--off", "models_off", metavar="MODEL", multiple=True, help="Don't offer a model.")
@click.option("--schedule", "windows", metavar="WHEN", multiple=True, help=_WINDOW_FORM + ".")
@click.option("--time-zone", metavar="NAME", help="Of the schedule, e.g. Europe/Berlin.")
@click.option("--deny", metavar="NAME", multiple=True, help="Serve a customer no more.")
@click.option("--undeny", metavar="NAME", multiple=True, help="Serve a denied customer again.")
@click.argument("pairs", metavar="[TERM=VALUE]...", nargs=-1)
@click.pass_obj
def set_command(  # noqa: PLR0913 - one parameter per option
    host: _Host,
    price: str | None,
    slots: int | None,
    models_on: Sequence[str],
    models_off: Sequence[str],
    windows: Sequence[str],
    time_zone: str | None,
    deny: Sequence[str],
    undeny: Sequence[str],
    pairs: Sequence[str],
) -> None:
    """Change terms of a running host.

    TERM=VALUE sets any of them by its path in `sparewatt terms --json`; null takes a change back.
    """
    patch = patch_of_pairs(pairs)
    if price is not None:
        patch["price"] = fixed_price(parse_price(price))
    if slots is not None:
        patch["slots"] = slots
    models = {name: {"is_on": True} for name in models_on}
    models |= {name: {"is_on": False} for name in models_off}
    if models:
        patch["models"] = models
    schedule = schedule_patch(windows, time_zone)
    if schedule:
        patch["schedule"] = schedule
    if deny or undeny:
        patch["access"] = {"deny": _denied(_asked(host, "GET"), deny, undeny)}
    if not patch:
        raise click.UsageError("say what to change, e.g. --slots 2 or idle.is_on=true")
    click.echo(_summary(_asked(host, "PATCH", patch)))


@terms_command.command("reset", epilog=example("sparewatt terms reset slots price"))
@click.argument("names", metavar="[TERM]...", nargs=-1)
@click.pass_obj
def reset_command(host: _Host, names: Sequence[str]) -> None:
    """Take back changes: those of some terms, or all."""
    if not names:
        told = _asked(host, "DELETE")
    else:
        told = _asked(host, "PATCH", patch_of_pairs([f"{name}=null" for name in names]))
    click.echo(_summary(told))


def patch_of_pairs(pairs: Sequence[str]) -> dict[str, object]:
    """Return the merge patch of ``a.b=VALUE`` pairs; a value is JSON, or else a text.

    Raises:
        click.UsageError: If one is no pair, or two contradict each other.
    """
    patch: dict[str, object] = {}
    for pair in pairs:
        path, sign, written = pair.partition("=")
        if not sign or not path:
            raise click.UsageError(f"{pair!r} changes nothing: write TERM=VALUE, e.g. slots=2")
        try:
            value: object = json.loads(written)
        except ValueError:
            value = written
        *parents, last = path.split(".")
        inner = patch
        for name in parents:
            held = inner.setdefault(name, {})
            if not isinstance(held, dict):
                raise click.UsageError(f"{pair!r} contradicts another of the changes")
            inner = held
        inner[last] = value
    return patch


def fixed_price(price: Price) -> dict[str, object]:
    """Return the patch that fixes a price; a cached token costs as any other."""
    return {
        "mode": "fixed",
        "in_micros_per_mtok": price.in_micros_per_mtok,
        "cached_micros_per_mtok": price.in_micros_per_mtok,
        "out_micros_per_mtok": price.out_micros_per_mtok,
    }


def schedule_patch(windows: Sequence[str], time_zone: str | None) -> dict[str, object]:
    """Return the patch of a schedule; empty if nothing is said of it.

    Raises:
        click.UsageError: If a window is not as it is written.
    """
    patch: dict[str, object] = {}
    if time_zone is not None:
        patch["time_zone"] = time_zone
    if len(windows) == 1 and windows[0] in ("always", "never"):
        patch["mode"] = windows[0]
    elif windows:
        patch["mode"] = "weekly"
        patch["windows"] = [_window(each) for each in windows]
    return patch


def _window(written: str) -> dict[str, object]:
    found = _WINDOW.fullmatch(written.strip().lower())
    if not found or found["first"] not in DAYS or (found["last"] or "mon") not in DAYS:
        raise click.UsageError(f"{written!r} is no schedule: {_WINDOW_FORM}")
    first = DAYS.index(found["first"])
    length = (DAYS.index(found["last"] or found["first"]) - first) % len(DAYS) + 1
    days = [DAYS[(first + offset) % len(DAYS)] for offset in range(length)]
    return {"days": days, "start": found["start"], "end": found["end"]}


def _denied(told: Mapping[str, object], deny: Sequence[str], undeny: Sequence[str]) -> list[str]:
    terms = told.get("terms")
    access = terms.get("access") if isinstance(terms, dict) else None
    held = access.get("deny") if isinstance(access, dict) else None
    names = [each for each in held if isinstance(each, str)] if isinstance(held, list) else []
    return [each for each in dict.fromkeys([*names, *deny]) if each not in undeny]


def _asked(
    host: _Host, method: str, body: Mapping[str, object] | None = None
) -> Mapping[str, object]:
    path = host.socket or socket_path(host_directory(host.data_dir))
    try:
        return control_api("the host", str(path)).send(method, _PATH, body)
    except RefusedError as error:
        raise Problem(
            str(error), "nothing was changed; `sparewatt terms --json` shows all"
        ) from error
    except AskError as error:
        raise Problem(str(error), "`sparewatt host` starts one; --data names another") from error


def _prices(now: Mapping[str, object]) -> list[str]:
    """Return what each model on offer costs, and who says so."""
    return [
        f"{text(each, 'model_id')}: ${dollars(number(each, 'in_micros_per_mtok'))}/"
        f"{dollars(number(each, 'out_micros_per_mtok'))} per million tokens "
        f"({_SOURCES.get(text(each, 'source'), text(each, 'source'))})"
        for each in objects(now, "prices")
    ]


def _summary(told: Mapping[str, object]) -> str:
    """Return what holds, what was changed, and the terms, for people."""
    now = told.get("now")
    now = now if isinstance(now, dict) else {}
    holds = objects(now, "holds")
    lines = [f"{text(each, 'way')}: {text(each, 'reason')}" for each in holds]
    lines = lines or ["nothing holds the host back"]
    for name, label in (
        ("next_change_at", "the schedule changes at"),
        ("heat_reason", "heat:"),
        ("cannot_see", ""),
        ("power_trouble", ""),
        ("index_detail", ""),
    ):
        if said := text(now, name):
            lines.append(f"{label} {said}".strip())
    changed = told.get("changed")
    names = [str(each) for each in changed] if isinstance(changed, list) else []
    lines.append(f"changed since the start: {', '.join(names) or 'nothing'}")
    lines += [f"price of {each}" for each in _prices(now)]
    terms = told.get("terms")
    if isinstance(terms, dict):
        lines += ["", *terms_table(terms, names)]
    return "\n".join(lines)
