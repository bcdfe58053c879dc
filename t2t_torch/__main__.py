"""python -m t2t_torch: list the commands of the package, or run the named one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from t2t_common.io import cli, commands


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    return commands.choose("t2t_torch", args)


if __name__ == "__main__":
    sys.exit(cli.run(main))
