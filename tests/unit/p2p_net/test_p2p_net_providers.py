"""Who serves a model, when some of the DHT's nodes lie about it."""

from p2p.net.providers import merged_providers

HONEST = [(f"host-{number}", [f"/ip4/10.0.0.{number}/tcp/1"]) for number in range(5)]


def merged(answers, peers_max=128, addresses_max=8):
    return merged_providers(answers, peers_max=peers_max, addresses_max=addresses_max)


def test_node_that_names_a_crowd_first_leaves_the_others_their_places():
    flood = [(f"fake-{number}", ["/ip4/6.6.6.6/tcp/1"]) for number in range(10_000)]
    found = merged([flood, *([HONEST] * 3)])
    assert [peer_id for peer_id, _ in found[:5]] == [peer_id for peer_id, _ in HONEST]
    assert len(found) == 128


def test_each_node_has_its_turn_where_nobody_agrees():
    flood = [(f"fake-{number}", []) for number in range(1000)]
    found = merged([flood, HONEST], peers_max=10)
    assert {peer_id for peer_id, _ in found} >= {peer_id for peer_id, _ in HONEST}


def test_node_that_names_a_peer_again_and_again_has_one_voice():
    found = merged([[("fake", [])] * 100, HONEST, HONEST])
    assert found[-1] == ("fake", ())


def test_invented_addresses_come_after_those_that_others_know():
    invented = [("host-1", [f"/ip4/6.6.6.{number}/tcp/1" for number in range(100)])]
    ((_, addresses),) = merged([invented, *([HONEST[1:2]] * 2)])
    assert addresses[0] == "/ip4/10.0.0.1/tcp/1"
    assert len(addresses) == 8


def test_nobody_named_is_nobody_found():
    assert merged([]) == []
    assert merged([[], []]) == []
