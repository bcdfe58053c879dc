"""`python -m parity convert SOURCE TARGET`: convert the weights of one of this project's models."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from t2t_common.io import cli
from t2t_common.io.terminal import make_console, plain
from t2t_parity.runner import run


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert weights between .pth, .pth.tar, .safetensors and an Orbax folder, in any direction.

    The weights are preserved bit for bit unless sizes other than the source's are requested; changes are reported."""

    source: Annotated[Path, tyro.conf.Positional]
    """File or folder to read."""
    target: Annotated[Path, tyro.conf.Positional]
    """File or folder to write. The suffix selects the format; without a known suffix it is an Orbax folder."""
    model: str | None = None
    """Model that the weights belong to, if the source does not record it."""
    img_size: tuple[int, ...] | None = None
    """Image size in pixels, if the source does not record it."""
    in_chans: int | None = None
    """Number of input channels, if the source does not record it."""
    num_classes: int | None = None
    """Number of classes, if the source does not record it."""
    raw: bool = False
    """Use the raw weights even if the source has an exponential moving average."""
    check: bool = True
    """Check that both frameworks compute the same with these weights, and store the result in the metadata."""

    def sizes(self) -> dict[str, object]:
        """Return the arguments of `create_model` that are given."""
        sizes: dict[str, object] = {"in_chans": self.in_chans, "num_classes": self.num_classes}
        if self.img_size is not None:
            if len(self.img_size) not in (1, 2):
                raise ValueError(f"--img-size takes one number or two, got {len(self.img_size)}")
            sizes["img_size"] = self.img_size[0] if len(self.img_size) == 1 else self.img_size
        return {key: value for key, value in sizes.items() if value is not None}


def main(args: Sequence[str], prog: str) -> int:
    """Run the command; return its exit code."""
    return run(lambda: convert(cli.parse(Convert, args, prog=prog, description=Convert.__doc__ or "")))


def convert(options: Convert) -> int:
    """Convert, print what was done, and return the exit code."""
    from t2t_parity.weight_files import carry_over

    sizes = options.sizes()
    console = make_console()
    with console.status(plain(f"converting {options.source}")):
        done = carry_over(
            options.source, options.target, options.model, use_ema=not options.raw, check=options.check, **sizes
        )
    for note in done.notes:
        print(note, file=sys.stderr)
    how = f"not as in {options.source}: {'; '.join(done.changes)}" if done.changes else "bit for bit"
    console.print(plain(f"{options.target}: {len(done.ledger)} tensors of {done.model}, {how}"), soft_wrap=True)
    return cli.OK
