"""A model file of llama.cpp's, as far as the host looks into it."""

from pathlib import Path

_MAGIC = b"GGUF"


def find_gguf_problem(model: Path) -> str:
    """Return why a file can't be a model, or an empty text. Blocks."""
    if not model.is_file():
        return f"the model file {model} does not exist"
    with model.open("rb") as file:
        return "" if file.read(len(_MAGIC)) == _MAGIC else f"{model} is not a GGUF file"
