"""``sparewatt terms``: what is written becomes a patch, and a running host follows it."""

import re
import sys
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner

from peer.host.schedule import Schedule, Window
from peer.host.terms import AccessTerms, HeatTerms, ModelTerms, PriceTerms, Terms, plain
from sparewatt.cli import main
from sparewatt.commands.terms import patch_of_pairs, schedule_patch
from sparewatt.terms_table import terms_table

sys.path.append(str(Path(__file__).parent.parent / "peer_host"))


def test_pairs_become_one_patch() -> None:
    assert patch_of_pairs(["idle.is_on=true", "idle.quiet_s=60", "slots=null", "x=a b"]) == {
        "idle": {"is_on": True, "quiet_s": 60},
        "slots": None,
        "x": "a b",
    }


@pytest.mark.parametrize("pairs", [["slots"], ["=2"], ["slots=2", "slots.x=1"]])
def test_pairs_that_change_nothing_are_refused(pairs) -> None:
    with pytest.raises(click.UsageError):
        patch_of_pairs(pairs)


def test_schedule_is_read_as_people_write_it() -> None:
    assert schedule_patch(["always"], None) == {"mode": "always"}
    assert schedule_patch([], "UTC") == {"time_zone": "UTC"}
    assert schedule_patch(["Fri-Mon 22:00-07:00", "wed 08:00-24:00"], None) == {
        "mode": "weekly",
        "windows": [
            {"days": ["fri", "sat", "sun", "mon"], "start": "22:00", "end": "07:00"},
            {"days": ["wed"], "start": "08:00", "end": "24:00"},
        ],
    }


@pytest.mark.parametrize("written", ["daily 22:00-07:00", "mon 22-7", "mon-xyz 22:00-07:00", ""])
def test_schedule_that_nobody_can_read_says_how_one_is_written(written) -> None:
    with pytest.raises(click.UsageError, match="mon-fri 22:00-07:00"):
        schedule_patch([written], None)


def test_host_that_is_not_there_is_told(tmp_path) -> None:
    (tmp_path / "host").mkdir()
    done = CliRunner().invoke(main, ["terms", "--data", str(tmp_path / "host")])
    assert done.exit_code != 0
    assert "does not answer" in done.output


def test_table_of_all_terms_says_each_in_words_under_the_path_that_changes_it() -> None:
    names = [f"wallet:{number:064x}" for number in range(3)]
    terms = Terms(
        models={"org/model": ModelTerms(price=PriceTerms(mode="fixed", in_micros_per_mtok=60_000))},
        schedule=Schedule(
            mode="weekly",
            windows=(
                Window(days=("mon", "tue", "wed"), start="22:00", end="07:00"),
                Window(days=("sat",), start="00:00", end="24:00"),
            ),
        ),
        access=AccessTerms(deny=tuple(names)),
        heat=HeatTerms(limit_celsius=80),
    )
    lines = terms_table(plain(terms), ["heat.limit_celsius"])
    rows = dict(line[2:].split(maxsplit=1) for line in lines if line[2] != " ")
    assert rows["slots"] == "all that each engine has"
    assert rows["is_paused"] == "no"
    assert rows["access.allow"] == "everybody"
    assert rows["schedule.windows"] == "mon-wed 22:00-07:00, sat 00:00-24:00"
    assert rows["models.org/model.price.in_micros_per_mtok"].endswith("($0.06)")
    assert rows["models.org/model.price.ceiling_in_micros_per_mtok"] == "no bound"
    assert rows["heat.limit_celsius"] == "80 °C"
    assert rows["power.limit_watts"] == "left alone"
    assert rows["per_client.tokens_per_minute"] == "no bound"
    assert [line[:1] for line in lines if "heat.limit" in line] == ["*"]
    assert all(sum(name in line for line in lines) == 1 for name in names)
    assert max(map(len, lines)) < 130
    for path in rows:
        patch_of_pairs([f"{path}=null"])


@pytest.mark.sockets
async def test_running_host_is_shown_changed_and_reset(tmp_path) -> None:
    from host_kit import MODEL, open_world  # noqa: PLC0415 - its room is not on the path before

    async with open_world(tmp_path, deadline_s=60) as world:

        async def run(*arguments: str) -> tuple[int, str]:
            command = ["terms", "--socket", str(world.config.control_socket), *arguments]
            done = await trio.to_thread.run_sync(lambda: CliRunner().invoke(main, command))
            return done.exit_code, done.output

        code, said = await run()
        assert code == 0
        assert "nothing holds the host back" in said
        assert "changed since the start: nothing" in said
        denied = "wallet:" + "ab" * 32
        code, said = await run(
            *("set", "--slots", "2", "--price", "0.05/0.20", "--off", "other/model"),
            *("--schedule", "never", "--deny", denied, "idle.quiet_s=7"),
        )
        assert code == 0, said
        assert "drain: the schedule says never" in said
        assert re.search(r"^\* slots +2$", said, re.MULTILINE)
        assert re.search(r"^\* price.in_micros_per_mtok +50000 .*\(\$0.05\)$", said, re.MULTILINE)
        assert re.search(r"^\* models.other/model.is_on +no$", said, re.MULTILINE)
        assert "{" not in said
        terms = world.record().offers[0]
        assert terms.model_id == MODEL
        code, said = await run("set", "--undeny", denied)
        assert denied not in said
        code, said = await run("set", "slots=-1")
        assert code != 0
        assert "slots: Expected `int` >= 0" in said
        code, said = await run("reset", "schedule", "idle")
        assert "nothing holds the host back" in said
        assert re.search(r"^\* slots +2$", said, re.MULTILINE)
        code, said = await run("reset")
        assert "changed since the start: nothing" in said
