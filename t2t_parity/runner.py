"""The runner of this project's commands in `python -m parity`: that of its other commands, `t2t_common.io.cli`."""

from __future__ import annotations

from collections.abc import Callable

from parity.commands.process import end
from t2t_common.io import cli


def run(main: Callable[[], int]) -> int:
    """Return the exit code of a command; user errors are printed as one line.

    After Ctrl-C the process ends at once: freeing half-built objects would print errors.
    """
    return cli.run(lambda args: main(), [], interrupted=lambda: end(cli.INTERRUPTED))
