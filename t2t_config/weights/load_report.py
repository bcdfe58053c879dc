"""Report on a loaded checkpoint, shared by both frameworks."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

from t2t_config.text import few


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Result of `load_checkpoint`, in the names of the framework that loaded the file.

    Attributes:
        path: Checkpoint file or folder.
        entry: Entry that was loaded, '' for a bare state dict.
        is_ema: Whether that entry holds EMA weights.
        layout: Naming scheme of the file: 'official', 'mmpretrain', ... (see `t2t_config.weights.layouts`), or 'Orbax'.
        loaded: Tensors of the model that now hold the file's values, including resized and adapted ones.
        resized: name -> how it was fitted to the model: position tables to another grid, the first layer to another
            number of channels.
        left_out: Names in the file that the model does not have.
        missing: Names in the model that the file does not have; they keep their values, in a new model their
            initialisation.
        verified: Kind of integrity check: "sha256" for the digests saved with every checkpoint, "crc32" for those of a
            zip file (see `t2t_config.weights.digests`), "" if the file has neither.
        prefix: Prefix that a wrapper added to every name in the file (see `t2t_config.weights.layouts.WRAPPERS`).
        ignored: Names in the file of a tool's counters, which are not weights.
        not_finite: Tensors of the model that now hold a NaN or an infinity.
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
        """Whether weights of the file were adapted or left out, so that the user may want to know."""
        return bool(self.resized or self.left_out or self.prefix or self.ignored)

    @property
    def doubt(self) -> str:
        """One line that names the weights that are not finite; '' if all are."""
        if not self.not_finite:
            return ""
        return f"{self.path} holds NaN or infinity in {few(self.not_finite)}: its outputs may be meaningless"

    def check_finite(self) -> None:
        """Check that all weights are finite, before training or other use of them.

        Raises:
            ValueError: If a weight is NaN or infinite; the message names the tensors.
        """
        if self.not_finite:
            raise ValueError(
                f"{self.path} holds NaN or infinity in {few(self.not_finite)}: it cannot be trained, use "
                "an earlier checkpoint"
            )

    def warn(self, *, fresh_classifiers: bool, stacklevel: int = 3) -> None:
        """Issue a UserWarning if the model's weights differ from the file's.

        Args:
            fresh_classifiers: Whether other classes or another auxiliary head than the file's were requested, so that
                classifiers may be missing.
            stacklevel: Argument of `warnings.warn`; 3 is the caller of the function that calls this.

        Raises:
            ValueError: If tensors of the model are missing in the file although nothing else was requested.
        """
        if self.missing and not fresh_classifiers:
            raise ValueError(
                f"{self.path} lacks {few(self.missing)}: get another copy, or give the num_classes of your own data to "
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
            lines.append(f"  names without the prefix {self.prefix!r} of a wrapper")
        if self.ignored:
            lines.append(f"  ignored, counters that are not weights: {few(self.ignored)}")
        lines += [f"  resized: {name} {how}" for name, how in self.resized.items()]
        if self.left_out:
            lines.append(f"  left out of the file: {', '.join(self.left_out)}")
        if self.missing:
            lines.append(f"  kept as they were in the model: {', '.join(self.missing)}")
        if not self.verified:
            lines.append("  has no digests: a change since it was saved would not be detected")
        return "\n".join(lines)


WEIGHT_TYPES = ("float64", "float32", "float16", "bfloat16")


def check_types(types: Mapping[str, str]) -> None:
    """Reject dtypes that cannot be converted without loss: complex numbers would lose a part, integers lack their
    scale.

    Args:
        types: Name of a tensor -> name of its dtype.

    Raises:
        ValueError: If a dtype is not in `WEIGHT_TYPES`; the message names the first few.
    """
    wrong = [f"{name} is {kind}" for name, kind in types.items() if kind not in WEIGHT_TYPES]
    if wrong:
        raise ValueError(f"{few(wrong)}: weights are {', '.join(WEIGHT_TYPES)}, convert them first")
