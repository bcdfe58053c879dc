"""Generate `report.html` of a workdir from its `metrics.jsonl` and `run.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2t_common import pages
from t2t_common.io.files import write_text
from t2t_common.run_page import charts, confusion
from t2t_common.workdir.lock import is_locked
from t2t_common.workdir.record import RECORD_FILE, Record
from t2t_common.workdir.writers import METRICS_FILE, read_lines
from t2t_config import Recipe
from t2t_config.class_names import class_names
from t2t_config.text import readable

PAGE_FILE = "report.html"
REFRESH_SECONDS = 10
"""Reload interval of the page during a run, in seconds."""
KINDS = {"running": "going", "finished": "good", "diverged": "bad", "failed": "bad"}
"""Status -> CSS class."""
MOST_CLASSES = 4096
"""Maximum number of classes for showing confusions, which requires the dense matrix."""
KILLED = "The process is gone and did not say why. The same command continues the run from its last checkpoint."

Lines = Sequence[Mapping[str, Any]]
"""Lines of metrics.jsonl (see t2t_common/run/reporter.py)."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """A highlighted metric with a note below it."""

    name: str
    value: str
    note: str = ""


def write_page(workdir: Path) -> Path:
    """Write the report page for the current state of the run in `workdir` and return its path.

    Raises:
        FileNotFoundError: `workdir` contains no run.
        ValueError: The page cannot be written.
    """
    record = Record.read(workdir)
    if record is None and not (workdir / METRICS_FILE).is_file():
        raise FileNotFoundError(f"no run in {workdir}: give the folder that holds {METRICS_FILE} and {RECORD_FILE}")
    status: str = record.status if record is not None else ""
    if status == "running" and not is_locked(workdir):
        status = "killed"
    return write_page_of(workdir, record or Record(), read_lines(workdir / METRICS_FILE), status=status)


def write_page_of(workdir: Path, record: Record, lines: Lines, *, status: str | None = None) -> Path:
    """Write the report page from `record` and `lines` and return its path. `status` overrides that of the record.

    Raises:
        ValueError: The page cannot be written, or the data are invalid; an existing page is kept.
    """
    path = workdir / PAGE_FILE
    status = record.status if status is None else status
    try:
        text = render(record, lines, name=workdir.resolve().name, status=status)
    except Exception as error:  # invalid values can raise almost any exception
        reason = f"{type(error).__name__}: {readable(str(error))}"
        files = f"{METRICS_FILE} and {RECORD_FILE} in {workdir}"
        raise ValueError(f"cannot make {PAGE_FILE} of {files} ({reason}): one of them is damaged") from error
    write_text(path, text)
    return path


def render(record: Record, lines: Lines, *, name: str, status: str) -> str:
    """Return the complete HTML document."""
    step = lines[-1]["step"] if lines else max((start.step for start in record.starts), default=0)
    epoch_steps = steps_per_epoch(record, lines)
    end = (step / epoch_steps) or 1.0
    return pages.render(
        "run.html",
        name=name,
        title=f"{name}: {status}" if status else name,
        status=status,
        kind=KINDS.get(status, "warn"),
        refresh=REFRESH_SECONDS if status == "running" else None,
        message=KILLED if status == "killed" else record.message,
        record=record,
        about=about(record),
        step=step,
        epoch=step / epoch_steps,
        epochs=record.last_step / epoch_steps,
        tiles=tiles(record, lines, step, epoch_steps, status),
        charts=charts.charts(lines, steps_per_epoch=epoch_steps, end=end),
        height=charts.HEIGHT,
        resumed=[
            (100 * start.step / epoch_steps / end, start.step) for start in record.starts if 0 < start.step < step
        ],
        samples=samples(record),
        confusion=confusion_of(record),
        confusion_epoch=record.confusion and record.confusion["step"] / epoch_steps,
        recipe=[row for row in recipe_rows(record.recipe) if row[2]],
        defaults=[row for row in recipe_rows(record.recipe) if not row[2]],
        corrupt=[name for line in lines for name in line.get("corrupt_images", ())],
        metrics_file=METRICS_FILE,
        record_file=RECORD_FILE,
    )


def steps_per_epoch(record: Record, lines: Lines) -> float:
    """Return the steps per epoch from the recipe, else from the first complete epoch; 1 if neither is known."""
    recipe = record.recipe
    if recipe and record.last_step:
        return record.last_step / (recipe["epochs"] + recipe["cooldown_epochs"])
    ends = (line["step"] / (line["epoch"] + 1) for line in lines if "epoch_loss" in line)
    return next(ends, 1.0)


def about(record: Record) -> list[str]:
    """Return short descriptions of the model, data and settings."""
    config, recipe = record.config, record.recipe
    if not recipe:
        return []
    shares = recipe["grad_accum_steps"]
    found = [
        config["model"],
        f"on {Path(recipe['data']).name}" if recipe["data"] else "",
        f"{recipe['img_size']} px",
        f"{config['num_classes']} classes",
        f"batches of {recipe['batch_size']}" + (f" in {shares} parts" if shares > 1 else ""),
        recipe["optimizer"],
        recipe["dtype"],
        record.starts[-1].devices if record.starts else "",
    ]
    return [text for text in found if text]


def tiles(record: Record, lines: Lines, step: int, epoch_steps: float, status: str) -> list[Tile]:
    """Return the most important metrics, as far as they are known."""
    found = []
    evaluations = [line for line in lines if "top1" in line]
    if evaluations:
        best = max(evaluations, key=lambda line: line["top1"])
        note = f"best {best['top1']:.2f} % after epoch {best['step'] / epoch_steps:.4g}"
        found.append(Tile("top-1", f"{evaluations[-1]['top1']:.2f} %", note))
    losses = [(line["step"], line[name]) for line in lines for name in ("epoch_loss", "loss") if name in line]
    if losses:
        means = [line for line in lines if "epoch_loss" in line]
        note = f"mean of epoch {means[-1]['epoch'] + 1}" if means else f"of step {losses[-1][0]}"
        found.append(Tile("training loss", f"{means[-1]['epoch_loss'] if means else losses[-1][1]:.4g}", note))
    rate = next((line for line in reversed(lines) if "images_per_second" in line), None)
    if rate is not None:
        wait = f"{rate['data_wait']:.0%} of the time waiting for data"
        mfu = f", MFU {rate['mfu']:.1%}" if "mfu" in rate else ""
        found.append(Tile("images per second", f"{rate['images_per_second']:,.0f}", wait + mfu))
    if record.starts:
        left = (record.last_step - step) * record.batch_size
        note = f"in {len(record.starts)} starts" if len(record.starts) > 1 else "from start to end"
        if status == "running" and rate is not None:
            note = f"about {duration(left / rate['images_per_second'])} left"
        found.append(Tile("time", duration(record.seconds), note))
    return found


def duration(seconds: float) -> str:
    """Format a duration in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def names_of(record: Record, classes: int) -> list[str]:
    """Return short names of the classes, or numbers if they have no names."""
    names = class_names(classes, saved=record.config.get("class_names"))
    return [name.split(",")[0].removeprefix("class ") for name in names]  # ImageNet names include synonyms


def samples(record: Record) -> list[dict[str, Any]]:
    """Return the sample images with their labels as text."""
    if record.samples is None:
        return []
    names = names_of(record, record.config["num_classes"])
    found = []
    for image in record.samples["images"]:
        labels = image["labels"]
        mixed = len(labels) > 1
        texts = [names[index] + (f" {share:.0%}" if mixed else "") for index, share in labels]
        found.append({"png": image["png"], "texts": texts})
    return found


def confusion_of(record: Record) -> confusion.Confusion | None:
    """Return the confusions of the latest evaluation; None if there is none or there are too many classes."""
    if record.confusion is None or record.confusion["classes"] > MOST_CLASSES:
        return None
    classes = record.confusion["classes"]
    return confusion.Confusion.of(confusion.dense(record.confusion["counts"], classes), names_of(record, classes))


def recipe_rows(recipe: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Return name, value and whether it differs from the default of `Recipe`, for each field."""
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}

    def differs(name: str, value: Any) -> bool:
        default = defaults.get(name)
        return value != (list(default) if isinstance(default, tuple) else default)

    return [(name, json.dumps(value).strip('"'), differs(name, value)) for name, value in recipe.items()]
