"""Command line shared by both `export` modules."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from t2t_common.evaluation.export_check import ExportError
from t2t_common.evaluation.weights_options import WeightsOptions
from t2t_common.io import cli
from t2t_common.io.files import check_target
from t2t_common.io.terminal import status


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(WeightsOptions):
    """Command-line options."""

    out: tyro.conf.Positional[Path]
    """File to write. From PyTorch, its suffix is .pt2 or .onnx and selects the format."""


def export_command(
    args: Sequence[str],
    package: str,
    doc: str,
    *,
    load: Callable[[WeightsOptions], tuple[Any, Any, dict[str, Any]]],
    export_model: Callable[..., Sequence[object]],
    check: Callable[[Path], None] = check_target,
    runs_on: str = "any batch size",
) -> int:
    """Run the command and return its exit code.

    Args:
        args: Command-line arguments.
        package: "t2t_jax" or "t2t_torch".
        doc: Description of the command, shown by `--help`.
        load: Options -> model, preprocessing, and metadata of the weights.
        export_model: Writes the model to a file with metadata, and returns what its verification found.
        check: Raises an error if the file cannot be written.
        runs_on: Where the file runs, for the last line.
    """
    options = cli.parse(ExportOptions, args, prog=f"python -m {package}.export", description=doc.strip())
    check(options.out)
    model, preprocess, saved = load(options)
    known = {key: value for key, value in saved.items() if key != "model"} | dataclasses.asdict(preprocess)
    try:
        with status(f"writing and verifying {options.out}"):
            found = export_model(model, options.out, metadata=known)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return cli.FAILED
    print(*found, f"{options.out}: {runs_on}", sep="\n")
    return cli.OK
