"""python -m t2t_common.run_page WORKDIR

Writes report.html of a run once more, from its metrics.jsonl and run.json: of one that was killed, or trained before
there was such a page.
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
    """Options of the command line."""

    workdir: tyro.conf.Positional[Path]
    """Folder of the run."""


def main(args: Sequence[str]) -> int:
    """The command; its exit code."""
    description = (__doc__ or "").strip()
    options = cli.parse(Options, args, prog="python -m t2t_common.run_page", description=description)
    print(write_page(options.workdir))
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
