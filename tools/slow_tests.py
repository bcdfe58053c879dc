"""Tests that take long, as the list that `make test-fast` leaves out.

python tools/slow_tests.py JUNIT.xml > tests/slow.txt

JUNIT.xml is written by `pytest --junitxml=JUNIT.xml` of the whole suite. Those tests are left out that take the most
time in all their parameters, until the rest takes `SECONDS` of one core.
"""

from __future__ import annotations

import collections
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

SECONDS = 400.0
"""Of one core: less than four minutes on two, and what the start of the tests takes."""


def main(junit: str) -> None:
    """Print one test per line, without parameters, in alphabetical order."""
    seconds: dict[str, float] = collections.defaultdict(float)
    for case in ET.parse(junit).iter("testcase"):
        seconds[test_of(case.attrib["classname"], case.attrib["name"])] += float(case.attrib["time"])
    rest, slow = sum(seconds.values()), []
    for test, duration in sorted(seconds.items(), key=lambda item: -item[1]):
        if rest <= SECONDS:
            break
        slow.append(test)
        rest -= duration
    print("\n".join(sorted(slow)))


def test_of(classname: str, name: str) -> str:
    """`tests.jax.test_hub`, `test_folder[1]` -> `tests/jax/test_hub.py::test_folder`."""
    module = classname
    while module and not Path(module.replace(".", "/") + ".py").is_file():
        module = module.rpartition(".")[0]
    inner = classname.removeprefix(module).removeprefix(".")
    file = module.replace(".", "/") + ".py"
    return "::".join(part for part in (file, inner.replace(".", "::"), name.partition("[")[0]) if part)


if __name__ == "__main__":
    main(*sys.argv[1:])
