"""The owner's terms: what they may be, how changes are merged, how they lie on the disk."""

import os
import stat

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.errors import DataDirectoryError
from peer.group_commit import run_inline
from peer.host.schedule import DAYS, Schedule, Window
from peer.host.terms import (
    AccessTerms,
    ClientTerms,
    HeatTerms,
    IdleTerms,
    ModelTerms,
    PowerTerms,
    PriceTerms,
    Terms,
    TermsError,
    changed,
    changed_fields,
    changes_between,
    decode_changes,
    encode_changes,
    merged,
    plain,
    terms_with,
)
from peer.host.terms_file import FILE_NAME, load_changes, save_changes
from peer.host.terms_keeper import TermsKeeper, TermsUnsavedError

PSEUDONYM = "pseudonym:" + "ab" * 32
MICROS = st.integers(0, 10**12)
PRICES = st.one_of(
    st.builds(PriceTerms),
    st.builds(lambda price: PriceTerms(mode="fixed", in_micros_per_mtok=price), MICROS),
    st.builds(
        lambda factor, low, more: PriceTerms(
            mode="index",
            factor_percent=factor,
            floor_in_micros_per_mtok=low,
            ceiling_in_micros_per_mtok=low + more,
        ),
        st.integers(1, 1000),
        st.integers(0, 10**11),
        st.integers(1, 10**11),
    ),
)
SCHEDULES = st.sampled_from(
    [
        Schedule(),
        Schedule(mode="never"),
        Schedule(
            mode="weekly",
            time_zone="Europe/Berlin",
            windows=(Window(days=DAYS, start="22:00", end="07:00"),),
        ),
    ]
)
TERMS = st.builds(
    Terms,
    is_paused=st.booleans(),
    schedule=SCHEDULES,
    models=st.dictionaries(
        st.sampled_from(["org/A", "org/b", "c"]),
        st.builds(ModelTerms, is_on=st.booleans(), price=PRICES),
    ),
    new_models_on=st.booleans(),
    slots=st.integers(0, 64),
    price=PRICES,
    access=st.builds(AccessTerms, deny=st.sampled_from([(), (PSEUDONYM,)])),
    per_client=st.builds(ClientTerms, requests_per_minute=st.integers(0, 100)),
    idle=st.builds(IdleTerms, is_on=st.booleans(), quiet_s=st.integers(0, 100)),
    power=st.builds(PowerTerms, limit_watts=st.integers(0, 500)),
    heat=st.builds(HeatTerms, limit_celsius=st.integers(50, 100)),
)


@pytest.mark.parametrize(
    ("patch", "param", "said"),
    [
        ({"slots": "4"}, "slots", "Expected `int`, got `str`"),
        ({"slots": 1025}, "slots", "<= 1024"),
        ({"slot": 1}, "", "unknown field `slot`"),
        (
            {"price": {"floor_in_micros_per_mtok": 5, "ceiling_in_micros_per_mtok": 2}},
            "price",
            "floor of in (5) is above its ceiling (2)",
        ),
        (
            {"price": {"mode": "fixed", "cached_micros_per_mtok": 1}},
            "price",
            "cached token can't cost more",
        ),
        ({"access": {"deny": ["me"]}}, "access", "write pseudonym:HEX or wallet:HEX"),
        ({"access": {"allow": ["peer:nobody"]}}, "access", "names no customer"),
        ({"models": {"org/A": {}, "org/a": {"is_on": False}}}, "", "named twice"),
        ({"models": {"": {"is_on": False}}}, "", "a model's id has 1 to"),
        (
            {"heat": {"limit_celsius": 80, "resume_below_celsius": 80}},
            "heat",
            "must be below limit_celsius, 80",
        ),
        ({"schedule": {"mode": "weekly"}}, "schedule", "needs windows"),
        ({"schedule": "always"}, "schedule", "Expected `object`, got `str`"),
    ],
)
def test_terms_that_may_not_be_are_refused_with_their_place(patch, param, said) -> None:
    initial = Terms(models={"org/A": ModelTerms()}) if "models" in patch else Terms()
    with pytest.raises(TermsError) as caught:
        terms_with(initial, patch)
    assert caught.value.param == param
    assert said in str(caught.value)


def test_patch_that_is_nested_without_end_is_refused() -> None:
    patch: dict[str, object] = {}
    for _ in range(100):
        patch = {"schedule": patch}
    with pytest.raises(TermsError, match="too deep"):
        terms_with(Terms(), patch)


def test_model_is_found_whatever_its_capitals() -> None:
    terms = Terms(models={"Org/Model": ModelTerms(is_on=False)}, new_models_on=True)
    assert not terms.model("org/model").is_on
    assert terms.model("org/other").is_on


def test_price_of_a_model_is_its_own_or_that_of_all() -> None:
    own = PriceTerms(mode="fixed", in_micros_per_mtok=9)
    terms = Terms(models={"a": ModelTerms(price=own)}, price=PriceTerms(mode="index"))
    assert terms.price_of("A") == own
    assert terms.price_of("b").mode == "index"


def test_merge_patch_is_that_of_the_rfc() -> None:
    # The examples of RFC 7396, appendix A, whose target and patch are objects.
    assert merged({"a": "b"}, {"a": "c"}) == {"a": "c"}
    assert merged({"a": "b"}, {"b": "c"}) == {"a": "b", "b": "c"}
    assert merged({"a": "b", "b": "c"}, {"a": None}) == {"b": "c"}
    assert merged({"a": ["b"]}, {"a": "c"}) == {"a": "c"}
    assert merged({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}) == {"a": {"b": "d"}}
    assert merged({"a": [{"b": "c"}]}, {"a": [1]}) == {"a": [1]}
    assert merged({"e": None}, {"a": 1}) == {"e": None, "a": 1}
    assert merged({}, {"a": {"bb": {"ccc": None}}}) == {"a": {"bb": {}}}


def test_null_takes_a_change_back_to_what_the_host_was_started_with() -> None:
    initial = Terms(slots=3, heat=HeatTerms(limit_celsius=80))
    changes = changed({}, {"slots": 1, "heat": {"limit_celsius": 0}})
    assert terms_with(initial, changes).slots == 1
    assert terms_with(initial, changes).heat.limit_celsius == 0
    assert changed_fields(changes) == ["heat.limit_celsius", "slots"]
    back = changed(changes, {"heat": {"limit_celsius": None}})
    assert back == {"slots": 1}
    assert terms_with(initial, back) == Terms(slots=1, heat=HeatTerms(limit_celsius=80))


@settings(max_examples=30)
@given(TERMS, TERMS)
def test_changes_between_two_terms_make_the_one_of_the_other(initial, wanted) -> None:
    changes = changes_between(initial, wanted)
    made = terms_with(initial, changes)
    assert {**plain(made), "models": {}} == {**plain(wanted), "models": {}}
    for model in ("org/A", "org/b", "c", "other"):
        assert made.model(model) == wanted.model(model)
    assert changes_between(initial, initial) == {}


@settings(max_examples=30)
@given(TERMS, TERMS)
def test_changes_survive_the_disk(initial, wanted) -> None:
    changes = changes_between(initial, wanted)
    assert decode_changes(encode_changes(changes)) == changes


@settings(max_examples=30)
@given(TERMS, st.data())
def test_changes_that_were_damaged_are_refused(wanted, data) -> None:
    whole = encode_changes(changes_between(Terms(), wanted))
    at = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    damaged = whole[:at] + bytes([other]) + whole[at + 1 :]
    for bad in (damaged, whole[:at], whole + b" ", b""):
        with pytest.raises(TermsError):
            decode_changes(bad)


def test_changes_of_a_later_version_are_not_guessed_at() -> None:
    later = encode_changes({}).replace(b'"version":1', b'"version":2')
    with pytest.raises(TermsError, match="version 2"):
        decode_changes(later)


# -- the file --------------------------------------------------------------------------------------


def test_file_is_the_owners_alone_and_whole(tmp_path) -> None:
    path = tmp_path / FILE_NAME
    assert load_changes(path) == {}
    save_changes(path, {"slots": 2})
    save_changes(path, {"slots": 3})
    assert load_changes(path) == {"slots": 3}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_file_that_was_left_half_written_by_a_kill_is_forgotten(tmp_path) -> None:
    path = tmp_path / FILE_NAME
    save_changes(path, {"slots": 2})
    (tmp_path / f".{FILE_NAME}.00ff00ff").write_bytes(b"{")
    assert load_changes(path) == {"slots": 2}
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_damaged_file_stops_the_host_and_says_what_to_do(tmp_path) -> None:
    path = tmp_path / FILE_NAME
    save_changes(path, {"slots": 2})
    path.write_bytes(path.read_bytes().replace(b'"slots":2', b'"slots":9'))
    with pytest.raises(DataDirectoryError, match="Restore it from a backup, or delete it"):
        load_changes(path)


def test_file_that_others_may_write_stops_the_host(tmp_path) -> None:
    path = tmp_path / FILE_NAME
    save_changes(path, {"slots": 2})
    path.chmod(0o620)
    with pytest.raises(DataDirectoryError, match="chmod 600"):
        load_changes(path)


async def test_keeper_holds_changes_over_a_restart_and_follows_the_file_in_the_rest(
    tmp_path,
) -> None:
    keeper = TermsKeeper(Terms(slots=3), tmp_path, run_inline)
    await keeper.change({"is_paused": True, "heat": {"limit_celsius": 70}})
    again = TermsKeeper(Terms(slots=5), tmp_path, run_inline)
    assert again.terms == Terms(slots=5, is_paused=True, heat=HeatTerms(limit_celsius=70))
    await again.reset()
    assert TermsKeeper(Terms(), tmp_path, run_inline).terms == Terms()


async def test_keeper_refuses_a_time_zone_that_there_is_not(tmp_path) -> None:
    keeper = TermsKeeper(Terms(), tmp_path, run_inline)
    for name in ("Europe/Belrin", "", "../../etc/passwd"):
        with pytest.raises(TermsError, match="is no time zone"):
            await keeper.change({"schedule": {"time_zone": name}})
    assert keeper.terms == Terms()
    with pytest.raises(DataDirectoryError, match="is no time zone"):
        TermsKeeper(Terms(schedule=Schedule(time_zone="X/Y")), tmp_path, run_inline)


async def test_changes_that_no_longer_fit_stop_the_host(tmp_path) -> None:
    keeper = TermsKeeper(Terms(heat=HeatTerms(limit_celsius=90)), tmp_path, run_inline)
    await keeper.change({"heat": {"resume_below_celsius": 80}})
    with pytest.raises(
        DataDirectoryError, match=r"must be below limit_celsius, 70.*mend host\.toml"
    ):
        TermsKeeper(Terms(heat=HeatTerms(limit_celsius=70)), tmp_path, run_inline)


async def test_change_that_the_disk_refuses_does_not_hold_unless_it_must(tmp_path) -> None:
    directory = tmp_path / "gone"
    keeper = TermsKeeper(Terms(), directory, run_inline)
    with pytest.raises(TermsUnsavedError, match="nothing was changed"):
        await keeper.change({"slots": 2})
    assert keeper.terms == Terms()
    with pytest.raises(TermsUnsavedError, match="until the host ends"):
        await keeper.change({"is_paused": True}, even_unsaved=True)
    assert keeper.terms.is_paused


def test_every_field_says_what_it_is() -> None:
    """The TOML's comments and the API's documentation are made of these."""
    for part in (ModelTerms, IdleTerms, PowerTerms, HeatTerms):
        for name in msgspec.json.schema(part)["$defs"][part.__name__]["properties"]:
            if name != "price":
                described = msgspec.json.schema(part)["$defs"][part.__name__]["properties"][name]
                assert described.get("description"), (part, name)
