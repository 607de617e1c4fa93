"""Where a process spends its time: py-spy's samples as a flat list."""

import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench import tools

SAMPLES_PER_S = 400
SHOWN_COUNT = 45
WAITING = ("WorkerThread._work (",)  # a thread without work, which py-spy takes for busy


def start(pid: int, seconds: float, out: Path) -> "subprocess.Popen[bytes]":
    """Begin to sample a process, from core 0; its stacks come into a file.

    Args:
        pid: Of the process.
        seconds: For how long.
        out: Will hold one folded stack with its count per line.
    """
    return subprocess.Popen(
        [
            *("taskset", "-c", "0", str(tools.py_spy()), "record", "--pid", str(pid)),
            *("--duration", str(max(1, round(seconds))), "--rate", str(SAMPLES_PER_S)),
            *("--format", "raw", "--output", str(out)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def flat(stacks: Iterable[str]) -> str:
    """Return a table of the functions that used most, each by itself and with what it called.

    Args:
        stacks: Lines ``outer;inner COUNT``, as py-spy's raw format has them.
    """
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = [_shortened(each) for each in stack.split(";")]
        if frames[-1].startswith(WAITING):
            continue
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    total = sum(own.values()) or 1
    lines = [f"{total} samples of a busy process", "own %  with calls %  function"]
    lines += [
        f"{100 * count / total:5.1f}  {100 * whole[frame] / total:12.1f}  {frame}"
        for frame, count in own.most_common(SHOWN_COUNT)
    ]
    lines += ["", "with calls %  own %  function"]
    lines += [
        f"{100 * count / total:12.1f}  {100 * own[frame] / total:5.1f}  {frame}"
        for frame, count in whole.most_common(SHOWN_COUNT)
    ]
    return "\n".join(lines) + "\n"


def _shortened(frame: str) -> str:
    """Return a frame without its line, so that a function is one row."""
    name, _, place = frame.partition(" (")
    path = place.rstrip(")").rpartition(":")[0] or place.rstrip(")")
    return f"{name} ({'/'.join(path.split('/')[-3:])})" if path else name
