"""Record of unreadable training images: each is counted and reported once; too many raise an error."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from t2t_common.data.images import UnreadableImageError
from t2t_common.data.readers.sources import Source

NAMED = 20
"""Maximum number of names in an error message; all of them have been reported before."""


class Unreadable:
    """Unreadable images of a run since this process started.

    Attributes:
        say: Function called once with a line of text for each unreadable image.
    """

    def __init__(self, source: Source, limit: int) -> None:
        """
        Args:
            source: Source of the images, used to name unreadable ones.
            limit: Maximum number of images that may be replaced by others.
        """
        self._source, self._limit = source, limit
        self._found: dict[int, str] = {}
        self.say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)

    @property
    def names(self) -> list[str]:
        """Descriptions of the unreadable images, in the order of discovery."""
        return list(self._found.values())

    def account(self, indices: np.ndarray) -> None:
        """Record the unreadable images reported by the examples of a batch; -1 stands for none.

        Raises:
            ValueError: If there are more than allowed; the message names them.
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
        try:  # read again here, as the error message stays in the worker process
            self._source[index]
        except UnreadableImageError as error:
            return str(error)
        return f"image {index}, which could not be read at first, but now can"
