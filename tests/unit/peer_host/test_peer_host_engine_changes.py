"""What host.toml says and what was changed live: who wins, and how it lies on the disk."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DataDirectoryError
from peer.group_commit import run_in_thread
from peer.host.config import ENGINES_COUNT_MAX, FakeSpec, HostedEngine, OpenAiSpec, Prices
from peer.host.engine_changes import (
    CHANGES_COUNT_MAX,
    EngineChangesError,
    begun_with,
    changed,
    decode_changes,
    encode_changes,
)
from peer.host.engine_keeper import FILE_NAME, EngineKeeper

PRICES = Prices(in_micros_per_mtok=1, cached_micros_per_mtok=1, out_micros_per_mtok=2)


def engine(name: str = "main", slots: int = 1) -> HostedEngine:
    return HostedEngine(name=name, spec=FakeSpec(), prices=PRICES, slots=slots)


def server(api_key: str) -> HostedEngine:
    spec = OpenAiSpec(url="http://127.0.0.1:1/v1", api_key=api_key)
    return HostedEngine(name="main", spec=spec, prices=PRICES)


ENGINES = st.builds(engine, st.sampled_from(("main", "two", "three")), st.integers(1, 3))
STARTED = st.lists(ENGINES, max_size=3, unique_by=lambda each: each.name)
STEPS = st.lists(st.tuples(st.sampled_from(("main", "two", "three")), st.none() | ENGINES))


@given(STARTED, STEPS)
def test_what_was_changed_is_what_the_next_start_begins_with(started, steps) -> None:
    changes, there = {}, {each.name: each for each in started}
    for name, now in steps:
        wanted = now and replace(now, name=name)
        changes = changed(changes, started, {name: wanted})
        there.pop(name, None)
        if wanted is not None:
            there[name] = wanted
        changes = decode_changes(encode_changes(changes))
    begun = begun_with(started, changes)
    assert {each.name: each for each in begun.engines} == there
    assert (dict(begun.changes), begun.notes) == (dict(changes), ())


def test_host_toml_that_says_something_new_of_an_engine_wins() -> None:
    changes = changed({}, [engine()], {"main": engine(slots=2), "two": engine("two")})
    begun = begun_with([engine(slots=3)], changes)
    assert begun.engines == (engine(slots=3), engine("two"))
    assert list(begun.changes) == ["two"]
    assert "engine main" in begun.notes[0]
    named_now = begun_with([engine(), engine("two", slots=9)], changes)
    assert named_now.engines == (engine(slots=2), engine("two", slots=9))


def test_unloading_is_taken_back_by_a_new_word_in_host_toml() -> None:
    changes = changed({}, [engine()], {"main": None})
    assert begun_with([engine()], changes).engines == ()
    assert begun_with([engine(slots=2)], changes).engines == (engine(slots=2),)


def test_change_rests_while_its_engine_is_not_started_with() -> None:
    changes = changed({}, [engine()], {"main": engine(slots=2)})
    elsewhere = begun_with([engine("trial")], changes)
    assert elsewhere.engines == (engine("trial"),)
    assert begun_with([engine()], elsewhere.changes).engines == (engine(slots=2),)


def test_new_api_key_in_host_toml_is_no_new_word_and_the_old_one_is_not_copied() -> None:
    live = HostedEngine(name="main", spec=FakeSpec(), prices=PRICES)
    changes = changed({}, [server("sk-old")], {"main": live})
    assert b"sk-old" not in encode_changes(changes)
    assert begun_with([server("sk-new")], changes).engines == (live,)


def test_more_engines_than_fit_are_left_out_and_named() -> None:
    live = {f"live-{index}": engine(f"live-{index}") for index in range(3)}
    changes = changed({}, [], live)
    started = [engine(f"own-{index}") for index in range(ENGINES_COUNT_MAX - 1)]
    begun = begun_with(started, changes)
    assert [each.name for each in begun.engines[-2:]] == [started[-1].name, "live-0"]
    assert ["live-1" in begun.notes[0], "live-2" in begun.notes[1]] == [True, True]
    assert len(begun.changes) == 3


def test_changes_are_bounded() -> None:
    many = {f"a-{index}": engine(f"a-{index}") for index in range(CHANGES_COUNT_MAX)}
    full = changed({}, [], many)
    with pytest.raises(EngineChangesError, match="more than"):
        changed(full, [], {"one-more": engine("one-more")})


@given(st.data())
def test_damaged_changes_are_refused(data) -> None:
    whole = encode_changes(changed({}, [engine()], {"main": None, "two": engine("two")}))
    at = data.draw(st.integers(0, len(whole) - 1))
    bad = whole[:at] + bytes((whole[at] ^ data.draw(st.integers(1, 255)),)) + whole[at + 1 :]
    for each in (whole[:at], bad):
        with contextlib.suppress(EngineChangesError):
            assert decode_changes(each) == decode_changes(whole)  # e.g. another kind of space


async def test_keeper_says_what_to_do_about_a_file_that_is_damaged(tmp_path) -> None:
    keeper = EngineKeeper([engine()], tmp_path, run_in_thread)
    await keeper.keep({"two": engine("two")})
    assert EngineKeeper([engine()], tmp_path, run_in_thread).engines == (engine(), engine("two"))
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text().replace('"two"', '"too"'))
    with pytest.raises(DataDirectoryError, match="delete it to start with the engines of host"):
        EngineKeeper([engine()], tmp_path, run_in_thread)
    path.unlink()
    await EngineKeeper([engine()], tmp_path, run_in_thread).forget()
    assert not path.exists()
