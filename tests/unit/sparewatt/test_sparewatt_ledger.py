"""What the demo reads out of two states of the ledger."""

from sparewatt.demo.ledger import movement

BEFORE = {
    "external:deposits": -1000,
    "client:available:a": 700,
    "client:reserved:a": 300,
    "client:promo:a": 0,
    "host:payable:h": 0,
    "platform:fee": 0,
}


def test_movement_of_a_payment_is_debit_host_and_fee():
    after = {**BEFORE, "client:reserved:a": 200, "host:payable:h": 80, "host:held:g": 15}
    after["platform:fee"] = 5
    moved = movement(BEFORE, after)
    assert (moved.debit_micros, moved.host_micros, moved.fee_micros) == (100, 95, 5)
    assert moved.is_balanced


def test_movement_of_a_new_reserve_is_no_debit():
    after = {**BEFORE, "client:available:a": 600, "client:reserved:a": 400}
    moved = movement(BEFORE, after)
    assert moved.debit_micros == 0
    assert moved.is_balanced


def test_movement_that_loses_money_is_not_balanced():
    assert not movement(BEFORE, {**BEFORE, "client:reserved:a": 200}).is_balanced
    assert not movement(BEFORE, {**BEFORE, "host:payable:h": 1}).is_balanced
