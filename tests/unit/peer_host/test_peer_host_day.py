"""A day of a host's life with faults: nothing is left behind of what happened to it."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio
from day_alone import DAY_BOUNDS, HOURS
from day_kit import CUSTOMERS_COUNT, FAULTS_AN_HOUR, HOUR_S, SPEC, Day
from host_kit import open_world
from leak_kit import Bounds, growth, held

from peer.host import logbook
from peer.host.link import HostLink
from peer.host.serve import HostServer

NOTHING = Bounds(objects=0, blocks=0, heap_bytes=0)


@pytest.fixture(autouse=True)
def _logs_are_kept_by_the_host_alone(monkeypatch) -> None:
    """Spare pytest's record of all lines, whose errors hold frames and what is in them."""
    monkeypatch.setattr(logging.getLogger("peer"), "propagate", False)
    # The ring of the owner's screen is full after the first hour.
    monkeypatch.setattr(logbook, "ENTRIES_COUNT_MAX", 5)


@pytest.mark.slow
def test_day_with_faults_leaves_nothing_behind(tmp_path) -> None:
    """In a process of its own: what earlier tests held would be let go in the course of it."""
    program = Path(__file__).with_name("day_alone.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lived = json.loads(done.stdout)
    assert lived["grown"] == {}
    assert lived["servers"] == 1  # nothing of those before the restarts
    # Whatever happened, the host healed by itself: 80 s later every request was served.
    ends = lived["done"]
    assert ends["after whole"] == HOURS * FAULTS_AN_HOUR * CUSTOMERS_COUNT
    assert not {"after failed", "after late", "during late"} & set(ends)
    assert ends["during failed"] > HOURS * CUSTOMERS_COUNT


async def test_host_that_forgets_to_forget_its_links_is_found_out(
    autojump_clock, tmp_path, monkeypatch
) -> None:
    """Rehearse the count itself."""
    kept: list[HostLink] = []
    link_over = HostServer.link_over

    def keep(server: HostServer, link: HostLink) -> None:
        kept.append(link)
        link_over(server, link)

    monkeypatch.setattr(HostServer, "link_over", keep)
    async with open_world(tmp_path, spec=SPEC, deadline_s=9 * HOUR_S, connect=False) as world:
        day = Day(world, seed=24)
        await day.live(1)
        before = held()
        await day.live(1)
        assert "peer.host.link.HostLink" in growth(before, held(), NOTHING)


@contextmanager
def leaked(kind: str, directory: Path) -> Iterator[None]:
    """Hold something of a kind that was not held before."""
    keep: list[object] = []
    with ExitStack() as stack:
        match kind:
            case "leak_kit.Bounds":
                keep.append(Bounds(1, 2, 3))
            case "blocks":
                keep.extend(str(number) for number in range(10**6, 10**6 + 5000))
            case "heap_bytes":
                keep.append(bytes(10**6))
            case "files":
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            case "children":
                child = stack.enter_context(subprocess.Popen([sys.executable, "-c", ""]))
                # It has ended, and nobody asked how: a zombie.
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            case "threads":
                over = threading.Event()
                thread = threading.Thread(target=over.wait)
                thread.start()
                stack.callback(thread.join)
                stack.callback(over.set)
            case "paths":
                (directory / "left").touch()
        yield
    keep.clear()


KINDS = ["leak_kit.Bounds", "blocks", "heap_bytes", "files", "children", "threads", "paths"]


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_leak_is_found(kind, tmp_path) -> None:
    before = held(tmp_path)
    with leaked(kind, tmp_path):
        grown = growth(before, held(tmp_path), Bounds(objects=0, blocks=4000, heap_bytes=10**5))
        assert kind in grown


async def test_task_that_is_left_is_found() -> None:
    before = held()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        assert "tasks" in growth(before, held(), DAY_BOUNDS)
        nursery.cancel_scope.cancel()
