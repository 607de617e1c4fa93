"""The network file: what it takes, and what it says of one that is wrong."""

import contextlib
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.network import NetworkFileError, NetworkInfo
from p2p.types import ModelId, NetworkId, PublicKey

INFO = NetworkInfo(
    network_id=NetworkId("local-1"),
    root_key=PublicKey(bytes(range(32))),
    settlement_url="http://127.0.0.1:8900",
    bootstrap=("/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWFUZ2qR1tokKoQvhVmkF5CCyMmocY9NA8ygnSjtBZG5xd",),
    models=(ModelId("org/model"),),
)


def test_network_info_written_and_read_is_the_same():
    assert NetworkInfo.from_json(INFO.to_json()) == INFO


def test_network_info_without_relays_is_taken():
    alone = dataclasses.replace(INFO, bootstrap=(), models=())
    assert NetworkInfo.from_json(alone.to_json()) == alone


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("version", 2, "version"),
        ("network_id", "Upper", "network_id"),
        ("network_id", "", "network_id"),
        ("network_id", "a" * 33, "network_id"),
        ("network_id", 7, "network_id"),
        ("root_key", "zz", "root_key"),
        ("root_key", "00", "root_key"),
        ("settlement_url", "ftp://x", "settlement_url"),
        ("settlement_url", "http://x/", "slash"),
        ("bootstrap", ["127.0.0.1:4001"], "multiaddr"),
        ("bootstrap", "x", "bootstrap"),
        ("bootstrap", [3], "bootstrap"),
        ("bootstrap", ["/ip4/127.0.0.1/tcp/1/p2p/x"] * 65, "64"),
        ("models", ["m"] * 257, "256"),
        ("models", [""], "models"),
        ("surprise", 1, "surprise"),
    ],
)
def test_network_file_with_a_wrong_field_names_it(field: str, value: object, said: str):
    fields = {**json.loads(INFO.to_json()), field: value}
    with pytest.raises(NetworkFileError, match=said):
        NetworkInfo.from_json(json.dumps(fields))


@pytest.mark.parametrize("field", ["network_id", "root_key", "settlement_url", "version"])
def test_network_file_without_a_field_names_it(field: str):
    fields = json.loads(INFO.to_json())
    del fields[field]
    with pytest.raises(NetworkFileError, match=field):
        NetworkInfo.from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, " " * 70_000])
def test_network_file_that_is_no_object_is_refused(text: str):
    with pytest.raises(NetworkFileError):
        NetworkInfo.from_json(text)


@given(st.text(max_size=200))
def test_network_file_of_any_text_is_read_or_refused(text: str):
    with contextlib.suppress(NetworkFileError):
        NetworkInfo.from_json(text)
