"""The catalogue, what fits, and how fast: data that is right, formulas that are checked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.host.consents import read_catalogue, read_terms
from peer.host.store.catalogue import HubSource, find_model, parse_catalogue, parse_licences
from peer.host.store.fits import (
    EFFICIENCY,
    cache_bytes,
    fits,
    needs,
    tokens_per_s,
    weights_bytes,
)

CATALOGUE = read_catalogue()
LLAMA = find_model(CATALOGUE, "meta-llama/llama-3.1-8b-instruct")
MIXTRAL = find_model(CATALOGUE, "mistralai/Mixtral-8x7B-Instruct-v0.1")
GEMMA = find_model(CATALOGUE, "google/gemma-3-12b-it")
GIB = 1024**3
MODELS = st.sampled_from(CATALOGUE)


def test_catalogue_names_each_model_once_and_terms_for_each():
    ids = [model.model_id.casefold() for model in CATALOGUE]
    assert len(set(ids)) == len(ids)
    terms = {each.licence for each in read_terms()}
    assert {model.licence for model in CATALOGUE} <= terms
    assert [model.is_demo for model in CATALOGUE].count(True) == 1


def test_catalogue_pins_no_commit_that_nobody_has_seen():
    revisions = {
        source.revision
        for model in CATALOGUE
        for source in model.sources
        if isinstance(source, HubSource)
    }
    assert revisions == {"main"}


def test_terms_that_bind_ask_for_consent_and_say_what_they_ask():
    for terms in read_terms():
        assert terms.needs_consent == bool(terms.restrictions)
        assert terms.url.startswith("https://")
    terms = {each.licence: each for each in read_terms()}
    assert terms["llama3.1"].attribution == "Built with Llama"
    assert not terms["qwen-research"].is_commercial


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[model]]\nid = 'x'", "title"),
        ("[[model]]\nid = 'x'\nsize = 1", "size"),
        ("[[model", "TOML|Expected"),
        ("model = 3", "array"),
    ],
)
def test_catalogue_that_is_none_is_refused(text: str, words: str):
    with pytest.raises(ValueError, match=words):
        parse_catalogue(text)
    with pytest.raises(ValueError, match=r".+"):
        parse_licences(text)


def test_needs_of_llama_are_as_computed_by_hand():
    # 32 layers, 8 heads of 128, keys and values, 2 bytes each: 128 KiB a token.
    assert cache_bytes(LLAMA, 1) == 128 * 1024
    assert cache_bytes(LLAMA, 8192) == GIB
    assert weights_bytes(LLAMA, LLAMA.source("safetensors")) == 16_060_522_496
    # A card of 24 GB holds it in 16 bits with 8,192 tokens, one of 16 GB does not.
    assert fits(LLAMA, 24 * GIB, 8192, source=LLAMA.source("safetensors"))
    assert not fits(LLAMA, 16 * GIB, 8192, source=LLAMA.source("safetensors"))
    assert fits(LLAMA, 8 * GIB, 8192, source=LLAMA.source("gguf"))
    assert not fits(LLAMA, 8 * GIB, 8192, source=LLAMA.source("gguf"), slots=4)


def test_windowed_layers_keep_their_window_only():
    # 48 layers, 40 of them with a window of 1,024 tokens; 8 heads of 256.
    per_layer = 2 * 8 * 256 * 2
    assert cache_bytes(GEMMA, 8192) == per_layer * (8 * 8192 + 40 * 1024)
    assert cache_bytes(GEMMA, 100) == per_layer * 48 * 100


def test_context_beyond_the_models_own_does_not_fit():
    assert not fits(LLAMA, 10_000 * GIB, LLAMA.context_tokens + 1)


def test_speed_is_bandwidth_over_what_a_token_reads():
    # 1 TB/s over 16.06 GB of weights, of which engines reach EFFICIENCY.
    speed = tokens_per_s(LLAMA, 10**12, source=LLAMA.source("safetensors"))
    assert speed == pytest.approx(EFFICIENCY * 62.26, rel=1e-3)
    # Of a mixture of experts a token reads two in eight, and what all share.
    whole = EFFICIENCY * 10**12 / weights_bytes(MIXTRAL, MIXTRAL.sources[0])
    assert tokens_per_s(MIXTRAL, 10**12) == pytest.approx(whole * 46.703 / 12.880, rel=1e-3)
    assert tokens_per_s(LLAMA, 10**12, context_tokens=100_000) < tokens_per_s(LLAMA, 10**12)


@given(model=MODELS, context=st.integers(1, 200_000), slots=st.integers(1, 64))
def test_more_tokens_or_slots_never_need_less(model, context: int, slots: int):
    least = needs(model, context, slots=slots).memory_bytes
    assert needs(model, context + 1, slots=slots).memory_bytes >= least
    assert needs(model, context, slots=slots + 1).memory_bytes > least
    if fits(model, least - 1, context, slots=slots):
        raise AssertionError("it fits into less than it needs")
    assert fits(model, least, context, slots=slots) == (context <= model.context_tokens)
