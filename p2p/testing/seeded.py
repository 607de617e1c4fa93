"""A run of trio that one seed decides: its clock, the order of its tasks, and all chance.

The same seed gives the same run, byte for byte, in any process: what trio leaves to chance (which
of several runnable tasks goes first) and what ``secrets`` draws come from one ``Random`` each.
What order still depends on is the code under test: the order of a set of objects changes with
their addresses, so code that acts on several things in turn keeps them in a dict or a list.
"""

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from random import Random
from typing import TypeVar

import trio
from trio._core import _run as scheduler
from trio.abc import Instrument
from trio.testing import MockClock

ResultT = TypeVar("ResultT")


def run_seeded(
    main: Callable[[Random], Awaitable[ResultT]],
    seed: int,
    *,
    instruments: Sequence[Instrument] = (),
) -> ResultT:
    """Run ``main`` on a virtual clock that jumps over every wait; return what it returns.

    Args:
        main: Gets the ``Random`` from which it is to draw all else.
        seed: Decides the run.
        instruments: For trio.
    """
    rng = Random(seed)
    with scheduled_by(rng.getrandbits(64)), _secrets_from(Random(rng.getrandbits(64))):
        return trio.run(
            main, rng, clock=MockClock(autojump_threshold=0), instruments=list(instruments)
        )


@contextlib.contextmanager
def scheduled_by(seed: int) -> Iterator[None]:
    """Let a seed decide which task goes first; trio has a switch for that, for Hypothesis."""
    inside = vars(scheduler)
    rng, switch = inside["_r"], "_ALLOW_DETERMINISTIC_SCHEDULING"
    before, state = inside[switch], rng.getstate()
    setattr(scheduler, switch, True)
    rng.seed(seed)
    try:
        yield
    finally:
        rng.setstate(state)
        setattr(scheduler, switch, before)


@contextlib.contextmanager
def _secrets_from(rng: Random) -> Iterator[None]:
    """Stand in for the operating system's source of chance."""
    real = secrets.token_bytes

    def seeded_bytes(nbytes: int | None = None) -> bytes:
        return rng.randbytes(secrets.DEFAULT_ENTROPY if nbytes is None else nbytes)

    secrets.token_bytes = seeded_bytes  # which the module's other functions call
    try:
        yield
    finally:
        secrets.token_bytes = real
