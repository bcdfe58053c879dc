"""What the commands of this folder have in common: options, and a file for the figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from t2t_common.io import cli
from t2t_common.io.files import check_target, write_text

T = TypeVar("T")


def parse(kind: type[T], args: Sequence[str], module: str, description: str | None) -> T:
    """The options of `python -m MODULE`; their file for the figures, `json`, can be written.

    Raises:
        FileNotFoundError, ValueError: an option cannot be followed, or the file not be written.
    """
    options = cli.parse(kind, args, prog=f"python -m {module}", description=(description or "").strip())
    check_target(getattr(options, "json", None))
    return options


def save(path: Path | None, figures: Any) -> None:
    """Writes figures as JSON, if there is a file for them."""
    if path is not None:
        write_text(path, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
