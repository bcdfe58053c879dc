"""Account of training images that cannot be read: counted, named once, fatal beyond a limit."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from t2t_common.data.images import UnreadableImageError
from t2t_common.data.readers.sources import Source

NAMED = 20
"""Names in an error message at most; all of them have been said before."""


class Unreadable:
    """The images of a run that could not be read, since this process began.

    Attributes:
        say: gets a line for each of them, once.
    """

    def __init__(self, source: Source, limit: int) -> None:
        """
        Args:
            source: of the images; names those that cannot be read.
            limit: how many may be replaced by others.
        """
        self._source, self._limit = source, limit
        self._found: dict[int, str] = {}
        self.say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)

    @property
    def names(self) -> list[str]:
        """In the order of their finding."""
        return list(self._found.values())

    def account(self, indices: np.ndarray) -> None:
        """Takes note of what the examples of a batch told; -1 stands for nothing.

        Raises:
            ValueError: these are more than allowed; the message names them.
        """
        for index in indices[indices >= 0].tolist():
            if index not in self._found:
                self._found[index] = self._describe(index)
                self.say(f"skipped {self._found[index]}")
        if len(self._found) > self._limit:
            more = len(self._found) - NAMED
            raise ValueError(
                f"corrupt images: {len(self._found)}, --max-corrupt-images {self._limit} allows no more: "
                + "; ".join(self.names[:NAMED])
                + (f"; and {more} more" if more > 0 else "")
            )

    def _describe(self, index: int) -> str:
        try:  # once more, here, as what a worker process learned of it stays there
            self._source[index]
        except UnreadableImageError as error:
            return str(error)
        return f"image {index}, which could not be read at first, but now can"
