"""Fail if a test run skipped anything: ``python .ci/no_skips.py RESULTS.xml ...``."""

import sys
import xml.etree.ElementTree as ElementTree


def main() -> int:
    """Return 1 and name the tests if a result file holds a skip, or no test at all."""
    runs = [list(ElementTree.parse(name).getroot().iter("testcase")) for name in sys.argv[1:]]
    cases = [case for run in runs for case in run]
    skipped = [case for case in cases if case.find("skipped") is not None]
    for case in skipped:
        print(f"skipped: {case.get('classname')}.{case.get('name')}", file=sys.stderr)
    if skipped:
        print("A skip here is a failure: install what is missing.", file=sys.stderr)
    is_empty = not runs or not all(runs)
    if is_empty:
        print("No test ran.", file=sys.stderr)
    return int(bool(skipped) or is_empty)


if __name__ == "__main__":
    raise SystemExit(main())
