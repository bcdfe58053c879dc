"""Throughput, data wait and MFU of a training run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Meter:
    """Measure training rates since the last `read`. The clock is paused while the run is not training.

    The first step includes compilation, so the clock is restarted after it.
    """

    def __init__(
        self,
        images_per_step: int,
        *,
        flops_per_image: int = 0,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`peak_flops` is the total peak of all devices in FLOP/s; without it, MFU is not reported."""
        self._images_per_step = images_per_step
        self._mfu_per_rate = None if peak_flops is None else flops_per_image / peak_flops
        self._clock = clock
        self._compiled = False
        self._running_since: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        if self._running_since is not None:
            self._running_since = self._clock()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context manager around fetching the next batch; it also restarts the clock after a pause."""
        start = self._clock()
        if self._running_since is None:
            self._running_since = start
        yield
        self._waited += self._clock() - start

    def step(self) -> None:
        """Count a finished step."""
        self._steps += 1
        if not self._compiled:
            self._compiled = True
            self._reset()

    def pause(self) -> None:
        """Stop the clock until the next `waiting`."""
        if self._running_since is not None:
            self._seconds += self._clock() - self._running_since
            self._running_since = None

    def rates(self) -> dict[str, float]:
        """Return images per second, the fraction of time spent waiting for data, and MFU if the peak is known.

        Empty until a step has been measured.
        """
        running = 0.0 if self._running_since is None else self._clock() - self._running_since
        seconds = self._seconds + running
        if not self._steps or seconds <= 0:
            return {}
        rate = self._steps * self._images_per_step / seconds
        rates = {"images_per_second": rate, "data_wait": min(1.0, self._waited / seconds)}
        if self._mfu_per_rate is not None:
            rates["mfu"] = rate * self._mfu_per_rate
        return rates

    def read(self) -> dict[str, float]:
        """Return `rates` and start a new measurement."""
        rates = self.rates()
        self._reset()
        return rates
