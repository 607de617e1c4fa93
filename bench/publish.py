"""``python -m bench.publish REPORT.json docs/performance.md``: renew the tables of the docs."""

import argparse
from pathlib import Path

from bench import report
from bench.report import Report

BEGIN = "<!-- bench: begin -->"
END = "<!-- bench: end -->"


def renewed(page: str, made: Report) -> str:
    """Return a page with the tables of a report between its marks."""
    return between(page, section(made), BEGIN, END)


def between(page: str, text: str, begin_mark: str, end_mark: str) -> str:
    """Return a page with a text between two marks.

    Raises:
        ValueError: If it has no marks.
    """
    head, begin, rest = page.partition(begin_mark)
    _, end, tail = rest.partition(end_mark)
    if not begin or not end:
        raise ValueError(f"the page lacks {begin_mark} and {end_mark}")
    return f"{head}{begin_mark}\n{text}\n{end_mark}{tail}"


def section(made: Report) -> str:
    """Return what stands between the marks."""
    where = ", ".join(f"{name} {value}" for name, value in made.machine.items())
    kind = "One short run a case" if made.is_quick else "Medians"
    parts = [
        f"{kind} on {where}.",
        report.goals_table(made.rows),
        report.table(made.rows),
        *report.spread_sentences(made.rows),
        "\n".join(f"- {note}" for note in made.notes),
    ]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    """Read the command line and rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    page = given.page.read_text(encoding="utf-8")
    given.page.write_text(renewed(page, report.read(given.report)), encoding="utf-8")


if __name__ == "__main__":
    main()
