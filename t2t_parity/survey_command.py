"""`python -m parity survey --out FILE`: check every model of this project and write the results to a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from t2t_common.io import cli
from t2t_common.io.files import check_target
from t2t_common.io.terminal import make_console, plain
from t2t_config import MODELS
from t2t_parity.runner import run


@dataclasses.dataclass(frozen=True)
class SurveyOptions:
    """Check every model of this project and write the results to a page such as docs/parity.md."""

    out: Path
    """Page to write; the results are also written next to it as JSON."""
    names: tuple[str, ...] = ()
    """Models to check; all by default. Results of other models already in the page are kept."""
    memory: float = 2.5
    """Memory limit in GiB for models and activations; more memory speeds up the check of a large model."""


def main(args: Sequence[str], prog: str) -> int:
    """Run the command; return its exit code."""
    description = SurveyOptions.__doc__ or ""
    return run(lambda: survey(cli.parse(SurveyOptions, args, prog=prog, description=description)))


def survey(options: SurveyOptions) -> int:
    """Check the models, write each result as it is there, and return the exit code."""
    from parity.environment import fingerprint
    from t2t_parity.survey import survey as examine
    from t2t_parity.survey import write

    check_target(options.out)
    console = make_console()
    figures = []
    with console.status("survey") as status:
        for figure in examine(options.names or tuple(MODELS), memory=options.memory, progress=status.update):
            figures.append(figure)
            write(figures, fingerprint(), options.out)
            console.print(f"{figure.name}: {'every gate holds' if figure.passed else 'FAILED'}, {figure.seconds:.0f} s")
    console.print(plain(f"{len(figures)} models written to {options.out}"), soft_wrap=True)
    return cli.OK if all(figure.passed for figure in figures) else cli.FAILED
