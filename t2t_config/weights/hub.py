"""Hub folders: `model.safetensors` (PyTorch's names and layouts, read by both frameworks), `config.json`, `README.md`.

Used by the twins t2t_torch/hub.py and t2t_jax/hub.py. Needs `huggingface_hub` only to access the hub itself.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from t2t_config.extras import install_hint
from t2t_config.text import first_line
from t2t_config.weights.card import from_config, model_card, to_config
from t2t_config.weights.digests import KEY, of_json
from t2t_config.weights.hub_names import plain_names
from t2t_config.weights.json_limits import parse
from t2t_config.weights.metadata import Metadata

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def write_folder(folder: str | Path, metadata: Metadata, write_weights: Callable[[Path], object], where: str) -> None:
    """Write a hub folder: all files go to a scratch folder first, then are moved into place. A README.md there is kept.

    Args:
        folder: Folder to write; created if it does not exist.
        metadata: Metadata from `describe_model`, with `recipe`, `metrics`, `parity` if known.
        write_weights: Function that writes the weights to a given path.
        where: Hub id or folder for the card's examples.

    Raises:
        ValueError: If it cannot be written; existing files are kept.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".unfinished-"))
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): choose another folder") from error
    try:
        write_weights(scratch / WEIGHTS)
        config = to_config(metadata)
        config = {**config, KEY: of_json(json.loads(json.dumps(config)))}
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        read_metadata(scratch)  # raises if it differs from what was written; the weights are verified by their writer
        if not (folder / CARD).exists():
            (scratch / CARD).write_text(model_card(metadata, where), encoding="utf-8")
        for path in sorted(scratch.iterdir(), key=lambda path: path.name == WEIGHTS):  # the weights last
            os.replace(path, folder / path.name)
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): free space, or choose another") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Describe the first tensors, by name, whose shapes differ between `found` and `expected`; '' if there are none."""
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    told = [f"{name} {found.get(name, 'missing')} instead of {expected.get(name, 'nothing')}" for name in names[:3]]
    return "; ".join(told) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_metadata(folder: str | Path) -> Metadata:
    """Read the metadata of a hub folder.

    Raises:
        FileNotFoundError: If config.json or the weights do not exist.
        ValueError: If config.json is damaged, was changed since it was saved, or does not describe one of our models.
    """
    for name in (CONFIG, WEIGHTS):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}: name a folder that save_pretrained wrote, or a hub id")
    try:
        config = parse((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        if isinstance(config, dict) and KEY in config and config.pop(KEY) != of_json(config):
            raise ValueError(f"it is not as it was saved: get another copy; if you changed it, take {KEY!r} out of it")
        return from_config(config)
    except ValueError as error:
        raise ValueError(f"cannot read {Path(folder) / CONFIG}: {error}") from error


def is_hub_folder(path: str | Path) -> bool:
    """Return whether `path` is a folder in the format of `write_folder`."""
    return (Path(path) / WEIGHTS).is_file()


def folder_metadata(path: str | Path, file: Path) -> Metadata:
    """Return the metadata in config.json for the weights `file` found at `path`; empty unless `path` is a hub folder.

    Raises:
        FileNotFoundError, ValueError: As raised by `read_metadata`.
    """
    return read_metadata(path) if file == Path(path) / WEIGHTS else {}


def fetch(
    repo_or_folder: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None, token: Any = None
) -> Path:
    """Return the local folder of a model: the given folder, or the hub's files in huggingface_hub's cache.

    Raises:
        ValueError, FileNotFoundError: If neither the folder nor a model of this name on the hub exists, or the hub
            cannot be reached.
    """
    if Path(repo_or_folder).is_dir():
        return Path(repo_or_folder)
    hub = _huggingface_hub()
    try:
        with plain_names(hub):
            for name in (CONFIG, WEIGHTS):
                found = Path(
                    hub.hf_hub_download(str(repo_or_folder), name, revision=revision, cache_dir=cache_dir, token=token)
                )
                revision = found.parent.name  # both files from the same commit
        return found.parent
    except _failures(hub) as error:
        raise ValueError(
            f"{repo_or_folder} is neither a folder nor a model on the hub ({first_line(error)})"
        ) from error


def upload(
    write: Callable[[Path], object],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: Any = None,
    message: str = "Upload model",
) -> str:
    """Create the repository if needed, let `write` fill a folder, and upload it in one commit; return its address.

    A README.md that the repository already has is kept.

    Raises:
        ValueError: If the hub refuses or cannot be reached.
    """
    hub = _huggingface_hub()
    api = hub.HfApi(token=token, library_name="t2t-vit")
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            if api.file_exists(repo_id, CARD, revision=revision):
                (Path(scratch) / CARD).unlink()
            commit = api.upload_folder(repo_id=repo_id, folder_path=scratch, revision=revision, commit_message=message)
        except _failures(hub) as error:
            refused = isinstance(error, (hub.errors.HfHubHTTPError, ValueError))
            then = "log in with `hf auth login`?" if refused else "check the connection and HF_ENDPOINT"
            raise ValueError(f"cannot push to {repo_id} ({first_line(error)}): {then}") from error
    return str(commit.commit_url)


def _failures(hub: Any) -> tuple[type[Exception], ...]:
    """Return what huggingface_hub raises if the hub refuses, cannot be reached, or local files cannot be written.

    They include the errors of its HTTP client (requests, httpx or httpx2, depending on the version): from httpx on
    these are not OSErrors, but HfHubHTTPError inherits from their base class.
    """
    client = [base for base in hub.errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"]
    return (*client, hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError, ValueError, OSError)


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.file_download
    except ModuleNotFoundError as error:
        raise ValueError(f"the hub needs huggingface_hub: {install_hint('hub')}") from error
    return huggingface_hub
