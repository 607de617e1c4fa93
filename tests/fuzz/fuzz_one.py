"""Fuzzes one decoder: ``python tests/fuzz/fuzz_one.py TARGET SECONDS``.

Coverage-guided (atheris, libFuzzer). Beyond 512 MiB of memory or 5 s for one input it is a crash
too. The input of a crash is kept under build/fuzz; put it into tests/fuzz/regressions.
"""

import pathlib
import sys
import tempfile

import atheris

ROOT = pathlib.Path(__file__).resolve().parents[2]
RSS_MIB_MAX = 512
INPUT_SECONDS_MAX = 5
INPUT_BYTES_MAX = 8192

with atheris.instrument_imports(include=["p2p", "peer", "settlement"]):
    import corpus
    import fuzz_targets


def main(name: str, seconds: int) -> None:
    """Fuzz until time is up; libFuzzer ends the process."""
    artifacts = ROOT / "build" / "fuzz"
    artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for index, seed in enumerate(corpus.seeds(name)):
            (pathlib.Path(folder) / f"seed-{index}").write_bytes(seed)
        options = [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-rss_limit_mb={RSS_MIB_MAX}",
            f"-timeout={INPUT_SECONDS_MAX}",
            f"-max_len={INPUT_BYTES_MAX}",
            f"-artifact_prefix={artifacts}/{name}-",
            "-print_final_stats=1",
            folder,
        ]
        atheris.Setup(options, fuzz_targets.TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
