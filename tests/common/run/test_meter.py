from __future__ import annotations

import pytest

from t2t_common.run.meter import Meter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(meter: Meter, clock: Clock, steps: int, *, wait: float, compute: float) -> None:
    for _ in range(steps):
        with meter.waiting():
            clock.now += wait
        clock.now += compute
        meter.step()


def test_rates_leave_out_compilation_and_pauses():
    clock = Clock()
    meter = Meter(32, flops_per_image=1000, peak_flops=128_000.0, clock=clock)
    assert meter.rates() == {}
    run(meter, clock, 1, wait=0.5, compute=60.0)
    assert meter.rates() == {}
    run(meter, clock, 3, wait=0.25, compute=0.75)
    meter.pause()
    clock.now += 100.0  # an evaluation
    run(meter, clock, 1, wait=0.25, compute=0.75)
    assert meter.rates() == meter.read() == {"images_per_second": 32.0, "data_wait": 0.25, "mfu": 0.25}
    assert meter.rates() == {}
    run(meter, clock, 2, wait=0.0, compute=0.5)
    assert meter.read() == {"images_per_second": 64.0, "data_wait": 0.0, "mfu": 0.5}


def test_no_mfu_without_a_peak():
    clock = Clock()
    meter = Meter(1, flops_per_image=1000, clock=clock)
    run(meter, clock, 2, wait=0.0, compute=1.0)
    assert meter.read() == pytest.approx({"images_per_second": 1.0, "data_wait": 0.0})
