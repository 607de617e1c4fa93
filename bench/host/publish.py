"""``python -m bench.host.publish REPORT.json docs/performance.md``: renew the host's tables."""

import argparse
from pathlib import Path

from bench import report
from bench.host.figures import BEGIN, END, section
from bench.publish import between


def main() -> None:
    """Read the command line and rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    page = given.page.read_text(encoding="utf-8")
    made = section(report.read(given.report))
    given.page.write_text(between(page, made, BEGIN, END), encoding="utf-8")


if __name__ == "__main__":
    main()
