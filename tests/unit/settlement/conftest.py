"""The stores on which settlement's suites run."""

import contextlib

import pytest
from settlement_kit import fill

from settlement.store_memory import MemoryStore
from settlement.store_sqlite import SqliteStore


@pytest.fixture(params=["sqlite", "memory"])
def store(request, tmp_path):
    """An empty store of each kind."""
    made = SqliteStore(tmp_path / "s.db") if request.param == "sqlite" else MemoryStore()
    with contextlib.closing(made):
        yield made


@pytest.fixture
def books(store):
    """A store with Alice's gateway and credit, and Bob's host."""
    with store.writing() as writing:
        fill(writing)
    return store
