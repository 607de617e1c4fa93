"""What is shown, as values: shapes, words, and what a change amounts to. A core: no I/O."""
