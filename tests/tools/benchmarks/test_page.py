"""The page of figures is what the results say."""

from __future__ import annotations

import json

from tools.benchmarks import page
from tools.benchmarks.chart import chart


def test_the_page_is_written_from_the_results():
    assert page.render() == page.PAGE.read_text(), "python -m tools.benchmarks.page writes it"
    speed = json.loads((page.RESULTS / "speed.json").read_text())
    assert chart(speed) == (page.PAGE.parent / page.CHART).read_text(), "python -m tools.benchmarks.page draws it"


def test_what_falls_short_is_said():
    tasks = json.loads((page.RESULTS / "speed.json").read_text())["tasks"]
    ours = tasks["inference"]["contestants"]["t2t_jax"]
    theirs = tasks["inference"]["contestants"]["authors' code"]
    ours["times_as_fast_as"]["authors' code"] = 1.24
    ours["share_of_limit"], theirs["share_of_limit"] = 0.91, 0.88
    ours["seconds"], theirs["seconds"] = [1.0, 0.91, 0.7], [0.9, 1.3, 0.91]
    lines = list(page._targets(tasks))
    assert "| inference: t2t_jax / authors' code | 1.25 | 1.24 | 0.90 to 1.43 | not reached | 110% |" in lines
    assert "| inference: t2t_jax / limit | 0.90 | 0.91 | 0.83 to 1.18 | reached | 90% |" in lines


def test_the_largest_batch_and_what_lies_beyond():
    report = {"model": "m", "topology": "v5e:4x4", "mesh": {"data": 16}, "memory": {"total": 3 << 30}, "fits": True}
    reports = [{**report, "batch": 32}, {**report, "batch": 64}]
    assert page._batches(reports).endswith("(data=16) has 64 images,\nwith 3.00 GiB a device.")
    assert page._batches([*reports, {**report, "batch": 96, "fits": False}]).endswith("; 96 do not fit.")
