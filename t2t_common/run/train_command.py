"""Training command shared by `python -m t2t_jax.train` and `python -m t2t_torch.train`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from t2t_common.evaluation.accuracy import Accuracy
from t2t_common.io import cli
from t2t_common.io.terminal import say
from t2t_common.workdir.errors import TrainingDivergedError
from t2t_common.workdir.interrupt import RunInterruptedError
from t2t_config import RECIPES, describe_recipe
from t2t_config import recipe as named_recipe


def run_command(
    args: Sequence[str],
    package: str,
    doc: str,
    *,
    options_type: type[Any],
    workdir_suffix: str,
    processes: Callable[[Any], AbstractContextManager[bool]],
    train: Callable[[Any, Path], Accuracy],
) -> int:
    """Run the training command and return its exit code.

    Args:
        args: Command-line arguments: the name of a recipe, then options.
        package: "t2t_jax" or "t2t_torch".
        doc: Description of the command, shown by `--help`.
        options_type: Dataclass of the options; its first field is the recipe.
        workdir_suffix: Appended to the recipe's name in the default workdir.
        processes: options -> context manager in which this process has joined the run; yields whether it may print.
        train: (options, workdir) -> accuracy.
    """
    program = f"python -m {package}.train"
    if not args or args[0] in ("-h", "--help"):
        names = f"recipes: {', '.join(RECIPES)}"
        if not args:
            raise ValueError(f"the recipe is missing: {program} RECIPE; {names}")
        names = textwrap.fill(names, width=100, subsequent_indent="  ", break_on_hyphens=False)
        print(f"{doc}\n{names}\n\n{program} RECIPE --help shows a recipe and its options")
        return cli.OK
    name = args[0]
    start = options_type(named_recipe(name))
    text = describe_recipe(name, package)
    options = cli.parse(options_type, args[1:], prog=f"{program} {name}", description=text, default=start)
    workdir = options.workdir or Path("workdir") / f"{name}{workdir_suffix}"
    with processes(options) as prints:
        try:
            result = train(options, workdir)
        except TrainingDivergedError as error:
            if prints:
                print(f"error: {error}", file=sys.stderr)
            return cli.FAILED
        except RunInterruptedError as stop:
            if prints:
                say(str(stop))
            return cli.OK
    if prints:
        say(f"finished: top-1 {result.top1:.2f} % ({result.top1_correct} of {result.images}), weights in {workdir}")
    return cli.OK
