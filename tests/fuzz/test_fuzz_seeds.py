"""Every seed and every input that once crashed a decoder, without the fuzzer."""

import corpus
import fuzz_targets
import pytest


@pytest.mark.parametrize("name", sorted(fuzz_targets.TARGETS))
def test_fuzz_target_takes_its_seeds_and_what_once_crashed_it(name: str):
    seeds = corpus.seeds(name)
    assert seeds
    for seed in seeds:
        fuzz_targets.TARGETS[name](seed)


@pytest.mark.parametrize("name", sorted(fuzz_targets.TARGETS))
def test_fuzz_target_takes_cut_and_flipped_seeds(name: str):
    for seed in corpus.seeds(name)[:8]:
        for at in range(0, len(seed), max(1, len(seed) // 16)):
            fuzz_targets.TARGETS[name](seed[:at])
            fuzz_targets.TARGETS[name](seed[:at] + bytes((seed[at] ^ 0x41,)) + seed[at + 1 :])
            fuzz_targets.TARGETS[name](seed + seed[at:])
