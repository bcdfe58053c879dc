"""Readers of reports, of the folders of runs, of names that users give, and of answers of servers."""

from __future__ import annotations

import dataclasses
import http.server
import json
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from parity.carry.convert import Entry, Ledger
from parity.measure.gates import Row
from parity.report.findings import Cause, FormatRow, Trajectory
from parity.report.report import Report, read_report
from t2t_common.io import cli
from t2t_common.run_page.page import write_page
from t2t_common.run_page.writer import RunPage
from t2t_common.workdir.record import Record, Start
from t2t_common.workdir.writers import JsonLines
from t2t_config import Recipe
from t2t_config.recipes import recipe, recipe_changes
from t2t_config.weights import download as downloads
from t2t_parity.survey import write
from tools.reliability.fuzzing.mutate import TRICKS, VALUES, Link, Tree, damaged_json, damaged_tree
from tools.reliability.fuzzing.reader import Reader
from tools.reliability.fuzzing.weights import by_suffix

# --- Reports of parity --------------------------------------------------------------------------------------


def parity_report() -> Reader:
    """A report as JSON, shown as text, page and JUnit."""

    def samples() -> Sequence[Tree]:
        rows = [
            Row(name, "layer" if name else "output", mode, "float64", 1e-16, 1e-13)
            for name in ("a.fc", "a", "")
            for mode in ("free", "forced")
        ]
        rows += [Row("a.fc.weight", "gradient", "free", "float32", 5e-7, 2e-6, 4e-7, noise=1e-7, growth=1.2)]
        rows += [Row("a.fc", "layer", "forced", "float32", 1.0, 1e-6, 1e-7, note="its shape differs")]
        ledger = Ledger(
            (Entry("a.fc.weight", "a.fc.kernel", "Linear", (1, 0), (3, 4), (4, 3), "float32"),), ("x",), ("y",)
        )
        series = (1.0, 0.5, 0.25)
        deep: Any = 1.0
        for _ in range(40):
            deep = {"a": [deep]}
        report = Report(
            tuple(rows),
            ledger,
            (("a.fc", "Linear"), ("a", "Block"), ("", "Net")),
            ("act of PyTorch",),
            {"torch_model": "Net", "jax_model": "Net", "level": "gradients", "seconds": 1.5, "more": deep},
            {"python": "3.11", "versions": {"torch": "2.0"}, "jax_devices": ["cpu"]},
            (Cause("a.fc", "gelu", "tanh in place of erf", 1e-3, 1e-16),),
            (FormatRow("logits", "bfloat16", 1e-3, 1e-2, 2e-3),),
            Trajectory(series, series, series, series, series),
        )
        extreme = Trajectory((1e308, -1e308, 0.0), (-1e308, 1e308, math.inf), series, series, series)
        found = (report, dataclasses.replace(report, trajectory=extreme))
        return [{"report.json": one.to_json().encode()} for one in found]

    def read(folder: Path) -> None:
        report = read_report(folder / "report.json")
        report.render(width=80)
        report.to_html()
        report.to_junit()

    return Reader(samples, lambda tree, rng: damaged_tree(tree, rng, damaged_json), read)


def survey() -> Reader:
    """The figures of every model that an earlier survey wrote."""
    figure = {
        **{"name": "t2t_vit_7", "passed": True, "changes": "", "layers": 9, "seconds": 1.0},
        **dict.fromkeys(("forced64", "free64", "logits64", "gradient64", "logits32_jax", "logits32_torch"), 1e-9),
    }
    environment = {"versions": {"torch": "2.0"}, "jax_devices": ["cpu"]}

    def read(folder: Path) -> None:
        write([], environment, folder / "parity.md")

    tree: Tree = {"parity.json": json.dumps({"environment": environment, "figures": [figure]}).encode()}
    return Reader(lambda: [tree], lambda tree, rng: damaged_tree(tree, rng, damaged_json), read, writes=("parity.*",))


# --- Folders of runs ----------------------------------------------------------------------------------------


def _run_samples() -> Sequence[Tree]:
    recipe = json.loads(
        json.dumps(dataclasses.asdict(Recipe("t2t_vit_micro", data="birds", epochs=2, cooldown_epochs=0)))
    )
    when = "2026-01-02T03:04:05+00:00"
    record = Record(
        status="finished",
        last_step=8,
        batch_size=4,
        starts=[Start(0, when, when, "python -m t2t_jax.train birds", "cpu"), Start(4, when, when, "again", "cpu")],
        environment={"python": "3.11"},
        config={
            "model": "t2t_vit_micro",
            "num_classes": 3,
            "recipe": recipe,
            "class_names": ["a", "b", "c"],
            "mean": [0.5],
            "std": [0.5],
        },
        samples={"step": 1, "images": [{"png": "iVBORw0K", "labels": [[0, 0.7], [1, 0.3]]}]},
        confusion={"step": 8, "classes": 3, "counts": [[0, 0, 5], [0, 1, 2], [2, 2, 9]]},
    )
    lines: list[dict[str, Any]] = []
    for step in range(1, 9):
        rates = {"images_per_second": 100.0, "data_wait": 0.1, "mfu": 0.3}
        lines.append({"step": step, "loss": 2 / step, "grad_norm": 1.0, "lr": 0.1, "epoch": (step - 1) // 4, **rates})
        if step % 4 == 0:
            lines.append({"step": step, "epoch": step // 4 - 1, "epoch_loss": 1 / step, "seconds": 2.0})
            lines.append({"step": step, "epoch": step // 4 - 1, "images": 30, "top1": 50.0, "top5": 90.0})
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    return [{"run.json": json.dumps(dataclasses.asdict(record), indent=1).encode(), "metrics.jsonl": metrics.encode()}]


def _run_change(tree: Tree, rng: Random) -> Tree:
    def lines(data: bytes, rng: Random) -> bytes:
        found = data.split(b"\n")
        place = rng.randrange(len(found) - 1)
        found[place] = damaged_json(found[place], rng)
        return b"\n".join(found)

    if rng.random() < 0.03:
        return {**tree, "report.html": rng.choice((Link("../outside/kept"), None))}
    return by_suffix({".json": damaged_json, ".jsonl": lines})(tree, rng)


def run_page() -> Reader:
    """The page of a run, made once more."""

    def read(folder: Path) -> None:
        write_page(folder)

    return Reader(_run_samples, _run_change, read, writes=("report.html",))


def resumed_run() -> Reader:
    """What a run that continues in its folder makes of what lies there; damaged lines are no reason to fail."""

    def read(folder: Path) -> None:
        lines = JsonLines(folder / "metrics.jsonl", first_step=4)
        page = RunPage(folder, first_step=4, last_step=8, batch_size=4, config={}, say=lambda text: None)
        for writer in (lines, page):
            writer.write({"step": 5, "loss": 1.0})
            writer.close(None)

    return Reader(_run_samples, _run_change, read, writes=("report.html", "metrics.*", "run.json"))


# --- Names and figures that users give ----------------------------------------------------------------------


def recipes() -> Reader:
    """A recipe's name and options on the command line, and the recipe that a checkpoint was trained with.

    There is no file of recipes: they are chosen by name, and every field is an option.
    """

    def read(folder: Path) -> None:
        case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        try:
            chosen = recipe(case["name"])
            arguments = [text for name, value in case["options"].items() for text in (f"--{name}", str(value))]
            chosen = cli.parse(Recipe, arguments, prog="case.json", description="", default=chosen)
        except ValueError as error:  # about the command line, which has no file
            raise ValueError(f"case.json: {error}") from error
        except SystemExit:
            return
        recipe_changes(case["there"], dataclasses.asdict(chosen))

    def change(tree: Tree, rng: Random) -> Tree:
        case = json.loads(tree["case.json"])  # type: ignore[arg-type]
        kind = rng.random()
        if kind < 0.2:
            case["name"] = rng.choice((*TRICKS[:-1], "imagenet_t2t_vit_1", "digit", "x" * 3000))
        elif kind < 0.7:
            fields = [field.name.replace("_", "-") for field in dataclasses.fields(Recipe)]
            value = rng.choice(
                (*(v for v in VALUES if not isinstance(v, int) or abs(v) < 10**300), "1,2", "None", "--epochs")
            )
            case["options"] = {rng.choice(fields): str(value)[:100].replace("\0", "")}
        else:
            case["there"] = {
                rng.choice(("epochs", "lr", "data", "betas", "\x1b")): rng.choice(
                    [v for v in VALUES if not isinstance(v, int) or abs(v) < 10**300]
                )
            }
        return {"case.json": json.dumps(case).encode()}

    tree: Tree = {
        "case.json": json.dumps({"name": "digits", "options": {"epochs": 3}, "there": {"epochs": 3}}).encode()
    }
    return Reader(lambda: [tree], change, read)


# --- Downloads ----------------------------------------------------------------------------------------------


def download() -> Reader:
    """Answers of a server, the last part of an address, and what an earlier download left."""
    body = b"weights" * 10
    answer = b'HTTP/1.1 200 OK\r\nETag: "one"\r\nContent-Length: 70\r\n\r\n' + body
    part = (
        b'HTTP/1.1 206 Partial\r\nETag: "one"\r\nContent-Range: bytes 7-69/70\r\nContent-Length: 63\r\n\r\n' + body[7:]
    )
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n46\r\n" + body + b"\r\n0\r\n\r\n"
    trees: Sequence[Tree] = [
        {"answer": answer, "name": b"weights.pth"},
        {"answer": part, "name": b"weights.pth", "weights.pth.part": body[:7], "weights.pth.part.version": b'"one"'},
        {
            "answer": chunks,
            "name": b"weights.pth",
            "weights.pth": body,
            "weights.pth.json": b'{"url": "x", "num_bytes": 70}',
        },
    ]

    def change(tree: Tree, rng: Random) -> Tree:
        if rng.random() < 0.2:
            odd = (
                *("..%2Fescaped", "%2Ftmp%2Ft2t-escaped", "..", ".", "", "%00", "a%0Ab", "x" * 300),
                *("%2e%2e%2f%2e%2e%2fescaped", "%ff", "a?b#c"),
            )
            return {**tree, "name": rng.choice(odd).encode()}
        return by_suffix({".json": damaged_json})(tree, rng)

    def read(folder: Path) -> None:
        downloads.PAUSE, downloads.ATTEMPTS, downloads.TIMEOUT = 0.0, 2, 1.0
        server = _server()
        content = folder / "answer"
        server.answer = content.read_bytes() if content.is_file() else b""
        name = (
            (folder / "name").read_bytes().decode("utf-8", "replace") if (folder / "name").is_file() else "weights.pth"
        )
        address = f"http://127.0.0.1:{server.server_address[1]}/files/{name}"
        path = downloads.cached_download(address, folder=folder, progress=False)
        assert path.parent == folder, path
        assert path.is_file(), path

    return Reader(lambda: trees, change, read, writes=("case/*",), names=("http://127.0.0.1",))


class _Answering(http.server.HTTPServer):
    """Gives the same bytes to whoever connects."""

    answer = b""


_SERVERS: dict[int, _Answering] = {}


def _server() -> _Answering:
    """One for the process, on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            self.connection.settimeout(1)
            try:
                self.connection.recv(1 << 16)
                self.connection.sendall(self.server.answer)  # type: ignore[attr-defined]
            except OSError:
                pass

    if os.getpid() not in _SERVERS:
        server = _SERVERS[os.getpid()] = _Answering(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    return _SERVERS[os.getpid()]
