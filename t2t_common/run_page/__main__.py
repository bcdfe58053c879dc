"""python -m t2t_common.run_page WORKDIR

Regenerate report.html of a run from its metrics.jsonl and run.json, for example if the run was killed or is from before
this page existed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from t2t_common.io import cli
from t2t_common.run_page.page import write_page


@dataclasses.dataclass(frozen=True)
class Options:
    """Command-line options."""

    workdir: tyro.conf.Positional[Path]
    """Folder of the run."""


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    description = (__doc__ or "").strip()
    options = cli.parse(Options, args, prog="python -m t2t_common.run_page", description=description)
    print(write_page(options.workdir))
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
