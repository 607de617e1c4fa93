"""A host's file that is written again keeps what its owner wrote."""

import stat
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from test_sparewatt_host_file import FILES

from sparewatt.host_file import parse_host_file, read_host_file
from sparewatt.host_file_edit import updated, write_host_file
from sparewatt.host_file_text import render
from sparewatt.host_tables import (
    DemoTable,
    FakeTable,
    HostFile,
    HostTable,
    OpenAiTable,
    PriceTable,
    TimeoutsTable,
)

PATH = Path("host.toml")
OWNERS = """\
# mine, from the shed
[host]
network = "join.json"   # the cooperative's
listen = [   # two doors
  "/ip4/0.0.0.0/tcp/4002",
  "/ip4/127.0.0.1/tcp/4003",
]
queue=7# not more

# the old one
[[engine]]
kind = "openai"
url = "http://h/v1"
[price]
per_mtok = "1.0/2.0"
"""


def test_change_of_a_value_leaves_every_other_line(tmp_path: Path):
    old = parse_host_file(OWNERS, PATH)
    file = msgspec.structs.replace(old, host=msgspec.structs.replace(old.host, queue=8))
    assert updated(OWNERS, file, PATH) == OWNERS.replace("queue=7# not more", "queue = 8# not more")
    assert updated(OWNERS, old, PATH) == OWNERS


def test_value_of_several_lines_is_changed_whole():
    old = parse_host_file(OWNERS, PATH)
    host = msgspec.structs.replace(old.host, listen=("/ip4/127.0.0.1/tcp/1",), network=None)
    text = updated(OWNERS, msgspec.structs.replace(old, host=host), PATH)
    assert text is not None
    assert text.splitlines()[2:5] == [
        '# network = "join.json"   # the cooperative\'s',
        'listen = ["/ip4/127.0.0.1/tcp/1"]',
        "queue=7# not more",
    ]


def test_new_engine_stands_where_the_old_one_was_and_takes_only_its_comment():
    old = parse_host_file(OWNERS, PATH)
    text = updated(OWNERS, msgspec.structs.replace(old, engine=(DemoTable(),)), PATH)
    assert text is not None
    assert "the old one" not in text
    assert text.index("not more") < text.index("small model of the demo") < text.index("[price]")
    both = msgspec.structs.replace(old, engine=(FakeTable(), *old.engine))
    assert parse_host_file(updated(OWNERS, both, PATH) or "", PATH) == both


def test_table_and_key_that_the_file_lacks_are_added():
    old = parse_host_file(OWNERS, PATH)
    file = HostFile(
        host=msgspec.structs.replace(old.host, region="FR"),
        price=old.price,
        engine=old.engine,
        timeouts=TimeoutsTable(head_s=3.0),
    )
    text = updated(OWNERS, file, PATH)
    assert text is not None
    assert parse_host_file(text, PATH) == file
    assert all(line in text.splitlines() for line in OWNERS.splitlines())


def test_commented_example_gives_way_to_the_value():
    text = render(HostFile())
    file = HostFile(host=HostTable(slots=3))
    assert updated(text, file, PATH) == text.replace("# slots = 1", "slots = 3")


@given(before=FILES, after=FILES)
def test_written_file_is_edited_line_by_line_whatever_changes(before: HostFile, after: HostFile):
    text = updated(render(before), after, PATH)
    assert text is not None
    assert parse_host_file(text, PATH) == after


@given(text=st.text(max_size=60), file=FILES)
def test_edit_of_anything_says_what_it_should_or_is_not_made(text: str, file: HostFile):
    changed = updated(text, file, PATH)
    assert changed is None or parse_host_file(changed, PATH) == file


def test_file_that_can_not_be_edited_is_made_anew_and_kept_beside(tmp_path: Path):
    path = tmp_path / "deep" / "host.toml"
    first = HostFile(price=PriceTable(per_mtok="1.0/1.0"))
    assert write_host_file(path, first) is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text('host = { network = "x" }\n')
    backup = write_host_file(path, first)
    assert backup is not None
    assert backup.read_text() == 'host = { network = "x" }\n'
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert read_host_file(path) == first


def test_engine_of_the_same_kind_keeps_its_notes():
    file = msgspec.structs.replace(
        parse_host_file(OWNERS, PATH), engine=(OpenAiTable(url="http://other/v1"),)
    )
    assert updated(OWNERS, file, PATH) == OWNERS.replace("http://h/v1", "http://other/v1")
