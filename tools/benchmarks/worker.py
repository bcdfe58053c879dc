"""One contestant in a process of its own: times a call whenever it is asked to.

`python -m tools.benchmarks.worker NAME TASK SETUP_AS_JSON` answers every line on stdin with one of JSON on stdout, the
seconds of a call; the first, which compiles, also with the versions. Each contestant has a process, as frameworks in
one process would fight over its threads.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

MODULES = ("jax", "flax", "torch", "timm")


def main(name: str, task: Any, setup: str) -> None:
    """Serves until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to stderr

    from tools.benchmarks.contestants import CONTESTANTS, Setup

    call = CONTESTANTS[name](Setup(**json.loads(setup)), task)
    for count, _ in enumerate(sys.stdin):
        start = time.perf_counter()
        call()
        answer: dict[str, object] = {"seconds": time.perf_counter() - start}
        if count == 0:
            answer["versions"] = {m: sys.modules[m].__version__ for m in MODULES if m in sys.modules}
        answer["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
