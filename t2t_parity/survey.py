"""`python -m parity survey`: check every model of this project and write the results to docs/parity.md."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from parity.proof.check import MEMORY, check
from parity.report.report import Report
from t2t_common.io.files import write_text
from t2t_config import ALIASES, MODELS
from t2t_config.text import readable
from t2t_parity.pair import make_pair

REDUCED: Mapping[str, Mapping[str, Any]] = {
    name: {"depth": 2} for name in MODELS if name.startswith(("vit_base", "vit_large", "vit_huge", "vit_deit_base"))
}
"""Models checked with fewer blocks, which are identical, to fit a small machine; all other sizes are unchanged."""


class Figure(NamedTuple):
    """Largest relF of one model over all layers or gradients."""

    name: str
    passed: bool
    changes: str
    layers: int
    forced64: float
    free64: float
    logits64: float
    gradient64: float
    logits32_jax: float
    logits32_torch: float
    seconds: float


def survey(
    names: Sequence[str], *, batch: int = 2, memory: float = MEMORY, progress: Callable[[str], None] | None = None
) -> Iterator[Figure]:
    """Check each model with weights drawn by `randomize` at its own image size, including gradients."""
    for name in (ALIASES.get(name, name) for name in names):
        if progress:
            progress(name)
        changes = REDUCED.get(name, {})
        torch_model, jax_model = make_pair(name, **changes)
        images = np.random.RandomState(0).standard_normal((batch, torch_model.in_chans, *torch_model.img_size))
        report = check(torch_model, jax_model, images, memory=memory, same_trainable=True)
        yield _figure(name, ", ".join(f"{k} {v}" for k, v in changes.items()), report)
        del torch_model, jax_model
        jax.clear_caches()
        gc.collect()


def _figure(name: str, changes: str, report: Report) -> Figure:
    def worst(kind: str, precision: str, mode: str) -> float:
        rows = [row for row in report.rows if (row.kind, row.precision, row.mode) == (kind, precision, mode)]
        return max(row.error for row in rows)

    output32 = next(row for row in report.rows if (row.kind, row.precision, row.mode) == ("output", "float32", "free"))
    return Figure(
        name,
        report.passed,
        changes,
        len(report.layers),
        worst("layer", "float64", "forced"),
        worst("layer", "float64", "free"),
        worst("output", "float64", "free"),
        worst("gradient", "float64", "free"),
        output32.error,
        output32.torch_error or 0.0,
        report.settings["seconds"],
    )


COLUMNS = (
    ("model", lambda f: f"`{f.name}`" + (f" ({f.changes})" if f.changes else "")),
    ("layer calls", lambda f: str(f.layers)),
    ("f64, layer forced", lambda f: f"{f.forced64:.1e}"),
    ("f64, layer free", lambda f: f"{f.free64:.1e}"),
    ("f64, logits", lambda f: f"{f.logits64:.1e}"),
    ("f64, gradients", lambda f: f"{f.gradient64:.1e}"),
    ("f32 logits, JAX", lambda f: f"{f.logits32_jax:.1e}"),
    ("f32 logits, PyTorch", lambda f: f"{f.logits32_torch:.1e}"),
    ("every gate holds", lambda f: "yes" if f.passed else "**no**"),
)


def as_markdown(figures: Sequence[Figure], environment: Mapping[str, Any]) -> str:
    """Return the page: how and in which environment the results were measured, and the table."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    lines = [
        "# Results for every model",
        "",
        "Written by `python -m parity survey --out docs/parity.md`. The numbers are the largest relative Frobenius",
        "errors of each kind, with random weights (`parity.randomize`), batch size 2 and the model's own image size.",
        "In float64, JAX is compared with PyTorch (gates: layers and logits 1e-13, gradients 1e-12); in float32, each",
        "framework is compared with the float64 run.",
        "",
        f"Measured with {versions}, on {', '.join(environment['jax_devices'])}.",
        "",
        "| " + " | ".join(title for title, _ in COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cell(figure) for _, cell in COLUMNS) + " |" for figure in figures),
    ]
    missing = [f"`{name}`" for name in MODELS if name not in {figure.name for figure in figures}]
    if missing:
        lines += ["", f"Not run with these versions yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def as_json(figures: Sequence[Figure], environment: Mapping[str, Any]) -> str:
    return json.dumps({"environment": dict(environment), "figures": [f._asdict() for f in figures]}, indent=1)


def write(figures: Sequence[Figure], environment: Mapping[str, Any], path: Path) -> None:
    """Write the page, and the same results as JSON next to it.

    Existing results of other models are kept unless they were measured with other package versions.
    """
    data = path.with_suffix(".json")
    known = {figure.name: figure for figure in (*_read(data, environment), *figures)}
    kept = [known[name] for name in MODELS if name in known]
    write_text(data, as_json(kept, environment) + "\n")
    write_text(path, as_markdown(kept, environment))


def _read(path: Path, environment: Mapping[str, Any]) -> list[Figure]:
    if not path.is_file():
        return []
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        same = saved["environment"]["versions"] == environment["versions"]
        figures = [Figure(**figure) for figure in saved["figures"]]
        as_markdown(figures, environment)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path} does not hold the results of a survey ({readable(str(error))}): delete it") from error
    return figures if same else []
