"""Commands of all packages: as `python -m PACKAGE.COMMAND`, as scripts (`t2t-train`), and listings of them.

Imports nothing but the standard library, so that a missing extra can be reported.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from t2t_config.extras import prepare_command

BOTH = {
    "train": "train a model, or resume a run",
    "evaluate": "compute the top-1 and top-5 accuracy of a checkpoint",
    "predict": "classify images",
    "visualize": "visualize the attention and features of a model",
}
COMMANDS = {
    "t2t_jax": {
        **BOTH,
        "export": "export a model as StableHLO, which runs without this package",
        "compile": "compile the training step for a TPU that is not attached; report memory and communication",
        "data": "benchmark the input pipeline, or write a data set as shards",
    },
    "t2t_torch": {**BOTH, "export": "export a model as ONNX or .pt2"},
}
"""Package -> its commands and their descriptions."""

SCRIPTS = {
    **{f"t2t-{name}": f"t2t_jax.{name}" for name in COMMANDS["t2t_jax"]},
    **{f"t2t-torch-{name}": f"t2t_torch.{name}" for name in COMMANDS["t2t_torch"]},
    "t2t-parity": "parity",
}
"""Script installed by pip -> module that it runs."""

_called: dict[str, str] = {}


def main() -> NoReturn:
    """Entry point of every script: run the module that belongs to the script's name, as `python -m` does."""
    script = Path(sys.argv[0]).stem
    module = SCRIPTS[script]
    _called[f"python -m {module}"] = script
    run(module)


def run(module: str) -> NoReturn:
    """Run a module of commands as `python -m` does, and end the process."""
    package = module.partition(".")[0]
    prepare_command("t2t_parity" if package == "parity" else package)  # the command includes our models
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


def called(prog: str) -> str:
    """Return the program name as called by the user: `python -m t2t_jax.train digits`, or `t2t-train digits`."""
    for module, script in _called.items():
        if prog == module or prog.startswith(f"{module} "):
            return script + prog.removeprefix(module)
    return prog


def listing(package: str) -> str:
    """Return the listing of a package's commands, one per line."""
    width = max(map(len, COMMANDS[package]))
    rows = [f"  {name:<{width}}  {text}" for name, text in COMMANDS[package].items()]
    call = f"python -m {package}.COMMAND --help shows the options of a command"
    return "\n".join([f"usage: python -m {package} COMMAND [OPTIONS]", "", *rows, "", call])


def choose(package: str, args: Sequence[str]) -> int:
    """Run `python -m PACKAGE`: list the commands, or run the given one.

    Raises:
        ValueError: If the command does not exist.
    """
    if not args or args[0] in ("-h", "--help"):
        print(listing(package))
        return 0
    if args[0] not in COMMANDS[package]:
        raise ValueError(f"{package} has no command {args[0]!r}: choose one of {', '.join(COMMANDS[package])}")
    sys.argv[1:] = args[1:]
    run(f"{package}.{args[0]}")
