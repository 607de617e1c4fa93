"""Make a folder that vLLM can serve from the demo model's GGUF file: ``make_model.py GGUF FOLDER``.

Runs in the environment that has vLLM. The weights become bfloat16; tokenizer and chat template
are those inside the file. The folder appears whole or not at all.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROBE = [{"role": "user", "content": "Say hello."}]


def main() -> None:
    """Convert, check that the tokenizer survived, and put the folder in place."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    if (target / "config.json").is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        folder = Path(made) / target.name
        convert(source, folder)
        for each in (folder, *folder.iterdir()):  # a sandbox's user reads them too
            each.chmod(each.stat().st_mode | 0o044 | (0o011 if each.is_dir() else 0))
        folder.rename(target)


def convert(source: Path, folder: Path) -> None:
    """Write model and tokenizer as transformers keeps them."""
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    # It would say that the weights are still quantised.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.save_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        PROBE, add_generation_prompt=True, tokenize=False
    )
    print(json.dumps({"template": tokens}))


if __name__ == "__main__":
    main()
