"""Which figures are drawn."""

from __future__ import annotations

import re

from parity.report.charts import depth_chart, gradient_charts, trajectory_charts
from tests.support.parity.samples import LAYERS, failing, passing, trained


def legend(chart: str) -> list[str]:
    return re.findall(r"</svg>([^<]+)</li>", chart)


def marks(chart: str, style: str) -> int:
    return chart.split('<div class="plot">')[1].count(f" {style}")


def test_the_depth_chart_shows_both_frameworks_noise_and_gates() -> None:
    chart = depth_chart(passing())
    assert chart is not None
    assert legend(chart) == [
        "float64, free",
        "float64, on correct inputs",
        "float64 noise floor",
        "float64 gate",
        "float32 JAX",
        "float32 PyTorch",
        "float32 noise floor",
        "float32 gate",
    ]
    for style in ("dot free64", "ring forced64", "square jax32", "cross torch32"):
        assert marks(chart, style) == len(LAYERS)


def test_the_first_divergence_is_marked() -> None:
    assert 'class="highlight"' in (depth_chart(failing()) or "")
    assert 'class="highlight"' not in (depth_chart(passing()) or "")


def test_every_gradient_is_drawn() -> None:
    (chart,) = gradient_charts(passing())
    assert marks(chart, "dot free64") == marks(chart, "square jax32") == 3


def test_training_has_a_chart_of_distances_and_one_of_losses() -> None:
    assert list(trajectory_charts(passing())) == []
    distances, losses = trajectory_charts(trained(7))
    assert marks(distances, "square jax32") == 7
    assert marks(losses, "square jax32") == 7
