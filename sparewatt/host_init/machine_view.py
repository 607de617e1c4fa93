"""The machine, as its owner is shown it."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sparewatt.host_init.facts import MachineFacts

GIB = 1 << 30
SANDBOX_WORDS = {"podman": "podman", "docker": "Docker", "bwrap": "bubblewrap"}


def machine_table(facts: MachineFacts) -> RenderableType:
    """Return what was found, one thing a row."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(ratio=1)
    for name, value in machine_rows(facts):
        table.add_row(f"  {name}", Text(value))
    return table


def machine_rows(facts: MachineFacts) -> list[tuple[str, str]]:
    """Return names and values, in an order."""
    report = facts.report
    rows = [("GPU", f"{gpu.name}, {gib(gpu.memory_bytes)} GiB") for gpu in facts.gpus]
    rows = rows or [("GPU", f"none used: {facts.gpu_reason}")]
    cores = f"{report.cpu_cores_count} cores" if report.cpu_cores_count > 1 else "1 core"
    free = f"{gib(facts.memory_free_bytes)} of {gib(report.memory_bytes)} GiB free"
    sandboxes = ", ".join(SANDBOX_WORDS[name] for name in facts.sandboxes)
    address = facts.address or "none: is this machine connected?"
    kind = "public" if facts.is_public else "behind a router"
    return [
        *rows,
        ("processor", f"{report.cpu_name}, {cores}"),
        ("memory", f"{free}, {facts.copy_gb_per_s:.0f} GB/s by one core"),
        ("disk", f"{gib(report.disk_free_bytes)} GiB free"),
        ("sandbox", sandboxes or "none: install podman or bubblewrap to seal engines in"),
        ("address", f"{address} ({kind})" if facts.address else address),
    ]


def gib(size_bytes: int) -> str:
    """Return a size in GiB."""
    return f"{size_bytes / GIB:.1f}"
