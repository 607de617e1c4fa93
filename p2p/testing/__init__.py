"""An in-memory overlay on trio's virtual clock; passes the real overlay's own tests."""
