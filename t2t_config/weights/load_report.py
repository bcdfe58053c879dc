"""What both frameworks tell about a checkpoint that was loaded."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

from t2t_config.text import few


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did, in the names of the framework that loaded.

    Attributes:
        path: the file or folder.
        entry: the entry of it that was taken, '' for a bare state dict.
        is_ema: whether that entry holds EMA weights.
        layout: whose names the file carries: 'official', 'mmpretrain', ... (see `t2t_config.weights.layouts`), or
            'Orbax'.
        loaded: the model's tensors that now hold the file's values, resized and adapted ones included.
        resized: name -> how it was fitted to the model: position tables to another grid, the first layer to other
            channels.
        left_out: names of the file that the model has no place for.
        missing: names of the model that the file did not fill; they keep the values they had, in a new model
            their initialisation.
        verified: what the bytes were compared with: "sha256" for the digests that are saved with every checkpoint,
            "crc32" for those of a zip file (see `t2t_config.weights.digests`), "" for nothing: the file carries
            neither.
        prefix: what a wrapper had put before every name of the file (see `t2t_config.weights.layouts.WRAPPERS`).
        ignored: names of the file that are a tool's counters, no weights.
        not_finite: the model's tensors that now hold a NaN or an infinity.
    """

    path: str
    entry: str
    is_ema: bool
    layout: str
    loaded: tuple[str, ...]
    resized: Mapping[str, str]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]
    verified: str = ""
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    not_finite: tuple[str, ...] = ()

    @property
    def is_notable(self) -> bool:
        """Whether something was done to the file's weights, or left of them, that its reader may want to know."""
        return bool(self.resized or self.left_out or self.prefix or self.ignored)

    @property
    def doubt(self) -> str:
        """One line that names the weights that are no finite numbers; '' if all are."""
        if not self.not_finite:
            return ""
        return f"{self.path} holds NaN or infinity in {few(self.not_finite)}: what it computes may mean nothing"

    def check_finite(self) -> None:
        """For who goes on from these weights.

        Raises:
            ValueError: a weight is NaN or infinite; the message names the tensors.
        """
        if self.not_finite:
            raise ValueError(
                f"{self.path} holds NaN or infinity in {few(self.not_finite)}: nothing can be trained from that, take "
                "an earlier checkpoint"
            )

    def warn(self, *, fresh_classifiers: bool, stacklevel: int = 3) -> None:
        """Says by a UserWarning what is not as the file has it, if anything.

        Args:
            fresh_classifiers: whether other classes or another auxiliary head than the file's were asked for, so that
                classifiers may be without its values.
            stacklevel: of `warnings.warn`; 3 is the caller of the function that calls this.

        Raises:
            ValueError: tensors of the model are not in the file, although nothing else was asked for.
        """
        if self.missing and not fresh_classifiers:
            raise ValueError(
                f"{self.path} lacks {few(self.missing)}: get it again, or give the num_classes of your own data to "
                "train a new classifier"
            )
        if self.resized or self.left_out or self.missing:
            warnings.warn(str(self), UserWarning, stacklevel=stacklevel)
        if self.not_finite:
            warnings.warn(self.doubt, UserWarning, stacklevel=stacklevel)

    def __str__(self) -> str:
        kind = "EMA" if self.is_ema else "raw"
        source = f"entry {self.entry!r} ({kind} weights)" if self.entry else "a bare state dict"
        lines = [f"{self.path}: {len(self.loaded)} tensors loaded from {source}, {self.layout} layout"]
        if self.prefix:
            lines.append(f"  names without the prefix {self.prefix!r} that a wrapper put before each")
        if self.ignored:
            lines.append(f"  ignored, counters of a tool and no weights: {few(self.ignored)}")
        lines += [f"  resized: {name} {how}" for name, how in self.resized.items()]
        if self.left_out:
            lines.append(f"  left out of the file: {', '.join(self.left_out)}")
        if self.missing:
            lines.append(f"  kept as they were in the model: {', '.join(self.missing)}")
        if not self.verified:
            lines.append("  carries no digests: a bit that changed since it was saved would not be noticed")
        return "\n".join(lines)


WEIGHT_TYPES = ("float64", "float32", "float16", "bfloat16")


def check_types(types: Mapping[str, str]) -> None:
    """Refuses numbers that no weight can be made of without loss: complex ones would lose a part, whole ones lack the
    scale that they were made with.

    Args:
        types: name of a tensor -> name of the type of its numbers.

    Raises:
        ValueError: some are of another type than `WEIGHT_TYPES`; the message names the first few.
    """
    wrong = [f"{name} is {kind}" for name, kind in types.items() if kind not in WEIGHT_TYPES]
    if wrong:
        raise ValueError(f"{few(wrong)}: weights are {', '.join(WEIGHT_TYPES)}, convert them first")
