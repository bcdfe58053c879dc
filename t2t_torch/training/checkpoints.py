"""Training checkpoints: the latest ones and the best one. Twin: t2t_jax/training/checkpoints.py.

Each is one file, `workdir/checkpoints/STEP.pth`, with the state after one step: weights, moving average, optimizer,
schedule, step and the position in the data. `load_checkpoint` reads its weights as from any other file;
`checkpoints/best.pth` is a link to the best one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from t2t_common.data.iterator import BatchIterator
from t2t_common.io.files import replace_file
from t2t_common.workdir.checkpoints import CheckpointFolder
from t2t_common.workdir.folder import SUFFIX, torch_steps
from t2t_config.text import first_line
from t2t_config.weights.metadata import from_text, to_text
from t2t_torch.checkpoint_file import check_written
from t2t_torch.training.processes import process_index
from t2t_torch.training.step import TrainState
from t2t_torch.weights.digests import check_content, torch_bytes
from t2t_torch.weights.safe_unpickle import read_pickle


class TrainingCheckpoints(CheckpointFolder):
    """Checkpoints of one run; a context manager, like its twin. Only the first process writes."""

    suffix = SUFFIX

    def __init__(self, workdir: str | Path, *, keep: int, keep_best: bool = False) -> None:
        """See `CheckpointFolder`."""
        super().__init__(workdir, keep=keep, keep_best=keep_best, is_main_process=process_index() == 0)

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def save(self, state: TrainState, iterator: BatchIterator, metadata: Mapping[str, Any]) -> None:
        """Save everything needed to resume the run.

        Raises:
            ValueError: It cannot be written; earlier checkpoints are unchanged.
        """
        self._begin(state.step, metadata)
        if process_index() > 0:
            return
        bundle = {
            "state_dict": state.raw,
            **({} if state.ema is None else {"state_dict_ema": state.ema.state}),
            "optimizer": state.optimizer.state_dict(),
            "scheduler": state.scheduler.state_dict(),
            "step": state.step,
            "data": iterator.get_state(),
            "metadata": to_text(metadata),
        }
        path = self._path(state.step)
        with replace_file(path) as temporary:
            temporary.write_bytes(torch_bytes(bundle))
            check_written(temporary, path, lambda: check_content(temporary, read_pickle(temporary)))
        self._finish()

    def wait(self) -> None:
        """Do nothing: the checkpoint is on disk when `save` returns."""

    def restore(self, state: TrainState, iterator: BatchIterator) -> TrainState:
        """Load the latest intact checkpoint into `state` and `iterator`, both of the same run; return `state`.

        Damaged checkpoints are renamed, and reported in `damaged.lines`.

        Raises:
            ValueError: All checkpoints are damaged, or the latest belongs to another run; the message names it.
        """

        saved = self.damaged.latest(lambda: self.latest_step, lambda step: _read(self._path(step)), None)
        assert saved is not None
        try:
            state.model.load_state_dict(saved["state_dict"])
            state.optimizer.load_state_dict(saved["optimizer"])
            state.scheduler.load_state_dict(saved["scheduler"])
            if state.ema is not None:
                for name, value in state.ema.state.items():
                    value.copy_(saved["state_dict_ema"][name])
            state.step = saved["step"]
            iterator.set_state(saved["data"])
            return state
        except Exception as error:  # intact, but of another run
            path = self._path(self.latest_step or 0)
            raise ValueError(f"cannot continue from {path} ({first_line(error)}): choose another --workdir") from error

    def _steps(self) -> list[int]:
        return torch_steps(self._folder)

    def _read_metadata(self, step: int) -> dict[str, Any]:
        """Return the metadata of a checkpoint, without reading its tensors."""
        path = self._path(step)
        saved = read_pickle(path, mapped=True)
        check_content(path, saved, {"metadata"})
        if not isinstance(saved, Mapping) or not isinstance(saved.get("metadata"), Mapping):
            raise ValueError("is no checkpoint of a run: no metadata in it")
        return from_text(saved["metadata"])

    def _remove(self, step: int) -> None:
        self._path(step).unlink()

    def _sweep(self) -> None:
        for leftover in self._folder.glob(f".*{SUFFIX}*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, verified against its digests if it has any."""
    saved = read_pickle(path)
    check_content(path, saved)
    return saved
