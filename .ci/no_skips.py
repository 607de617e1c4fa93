"""Fail if a test run skipped anything: ``python .ci/no_skips.py RESULTS.xml``."""

import sys
import xml.etree.ElementTree as ElementTree


def main() -> int:
    """Return 1 and name the tests if the JUnit results hold a skip, or hold no test at all."""
    root = ElementTree.parse(sys.argv[1]).getroot()
    cases = list(root.iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    for case in skipped:
        print(f"skipped: {case.get('classname')}.{case.get('name')}", file=sys.stderr)
    if skipped:
        print("A skip here is a failure: install what is missing.", file=sys.stderr)
    if not cases:
        print("No test ran.", file=sys.stderr)
    return int(bool(skipped) or not cases)


if __name__ == "__main__":
    raise SystemExit(main())
