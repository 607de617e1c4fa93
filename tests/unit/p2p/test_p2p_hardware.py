"""What a card should do, and what it was measured to do."""

import math

import pytest

from p2p.hardware.verdict import Speeds, misfits, read_cards
from peer.host.challenge.local import load_cards

GIB = 2**30
NAME = "NVIDIA GeForce RTX 4090"


def test_table_is_read_and_each_card_is_plausible():
    cards = load_cards()
    assert len(cards) >= 20
    for name, card in cards.items():
        assert name.startswith("NVIDIA ")
        assert 8 <= card.memory_gib <= 192
        assert 200 <= card.memory_gb_per_s <= 8000
        assert 20 <= card.matmul_tflops <= 2500


def test_card_that_does_what_its_maker_says_fits():
    assert misfits(NAME, 24_564 * 2**20, Speeds(915, 150), load_cards()) == ()


@pytest.mark.parametrize(
    ("memory_bytes", "speeds", "what"),
    [
        (8 * GIB, Speeds(915, 150), "memory in GiB"),  # 24 claimed, 8 there
        (24 * GIB, Speeds(320, 150), "memory bandwidth"),  # a 3060 that calls itself 4090
        (24 * GIB, Speeds(850, 66), "matmul"),  # a 3090 that calls itself 4090
        (24 * GIB, Speeds(2900, 150), "memory bandwidth"),  # too fast to be true
        (24 * GIB, Speeds(0, 0), "memory bandwidth"),
    ],
)
def test_card_that_is_another_does_not_fit(memory_bytes, speeds, what):
    problems = misfits(NAME, memory_bytes, speeds, load_cards())
    assert any(what in problem for problem in problems)


def test_card_that_the_table_lacks_is_not_compared():
    assert misfits("NVIDIA Nonesuch", 1, Speeds(0, 0), load_cards()) == ()


def test_memory_is_compared_without_speeds():
    assert misfits(NAME, 24 * GIB, None, load_cards()) == ()
    assert misfits(NAME, 12 * GIB, None, load_cards())


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e7])
def test_speed_that_can_not_be_is_refused(value):
    with pytest.raises(ValueError, match="speed"):
        Speeds(value, 1)


def test_table_without_cards_is_refused():
    with pytest.raises((ValueError, KeyError)):
        read_cards("x = 1")
