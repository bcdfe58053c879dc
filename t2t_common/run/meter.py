"""How fast a run is, and what it waits for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Meter:
    """Rates since the last reading. The clock stands still while the run does other things than train.

    The first step compiles: the clock starts anew after it.
    """

    def __init__(
        self,
        images_per_step: int,
        *,
        flops_per_image: int = 0,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`peak` is that of all devices together, in FLOP/s; without it there is no MFU."""
        self._images_per_step = images_per_step
        self._mfu_per_rate = None if peak is None else flops_per_image / peak
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
        """Around what fetches the next batch; also starts the clock after a pause."""
        start = self._clock()
        if self._running_since is None:
            self._running_since = start
        yield
        self._waited += self._clock() - start

    def step(self) -> None:
        """A step is done."""
        self._steps += 1
        if not self._compiled:
            self._compiled = True
            self._reset()

    def pause(self) -> None:
        """Stops the clock until the next `waiting`."""
        if self._running_since is not None:
            self._seconds += self._clock() - self._running_since
            self._running_since = None

    def rates(self) -> dict[str, float]:
        """Images per second, share of the time spent waiting for data, and MFU where the peak is known.

        Empty before a first step was measured.
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
        """`rates`, and begins a new measurement."""
        rates = self.rates()
        self._reset()
        return rates
