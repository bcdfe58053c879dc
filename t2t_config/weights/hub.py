"""Hub folders: `model.safetensors` (PyTorch's names and layouts, read by both frameworks), `config.json`, `README.md`.

Twins of its users: t2t_torch/hub.py and t2t_jax/hub.py. Needs `huggingface_hub` only where the hub itself is asked.
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
    """Writes a hub folder: everything beside it first, then each file takes its place. A README.md there stays.

    Args:
        folder: created if need be.
        metadata: of `describe_model`, with `recipe`, `metrics`, `parity` where known.
        write_weights: writes the weights to the path it is given.
        where: hub id or folder for the card's examples.

    Raises:
        ValueError: it cannot be written; what was there stays.
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
        read_metadata(scratch)  # raises if it is not what was written; the weights' writer has read them back
        if not (folder / CARD).exists():
            (scratch / CARD).write_text(model_card(metadata, where), encoding="utf-8")
        for path in sorted(scratch.iterdir(), key=lambda path: path.name == WEIGHTS):  # the weights last
            os.replace(path, folder / path.name)
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): free space, or choose another") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The first tensors, by name, whose shapes differ between both; '' where none does."""
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    told = [f"{name} {found.get(name, 'missing')} in place of {expected.get(name, 'nothing')}" for name in names[:3]]
    return "; ".join(told) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_metadata(folder: str | Path) -> Metadata:
    """The metadata of a hub folder.

    Raises:
        FileNotFoundError: no config.json or no weights there.
        ValueError: config.json is damaged, not as it was saved, or not of a model of ours.
    """
    for name in (CONFIG, WEIGHTS):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}: name a folder that save_pretrained wrote, or a hub id")
    try:
        config = parse((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        if isinstance(config, dict) and KEY in config and config.pop(KEY) != of_json(config):
            raise ValueError(f"it is not as it was saved: get it again; if you changed it, take {KEY!r} out of it")
        return from_config(config)
    except ValueError as error:
        raise ValueError(f"cannot read {Path(folder) / CONFIG}: {error}") from error


def is_hub_folder(path: str | Path) -> bool:
    """Whether `path` is a folder as `write_folder` writes them."""
    return (Path(path) / WEIGHTS).is_file()


def folder_metadata(path: str | Path, file: Path) -> Metadata:
    """What config.json says of the weights `file` that were found at `path`; nothing unless that is a hub folder.

    Raises:
        FileNotFoundError, ValueError: as `read_metadata`.
    """
    return read_metadata(path) if file == Path(path) / WEIGHTS else {}


def fetch(
    repo_or_folder: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None, token: Any = None
) -> Path:
    """The local folder of a model: itself, or the hub's files of that id in huggingface_hub's cache.

    Raises:
        ValueError, FileNotFoundError: no such folder and no such model on the hub, or the hub cannot be reached.
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
                revision = found.parent.name  # both files of one commit
        return found.parent
    except _failures(hub) as error:
        raise ValueError(
            f"{repo_or_folder} is neither a folder nor a model that the hub gives ({first_line(error)})"
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
    """Makes the repository if need be, lets `write` fill a folder, and uploads it in one commit. Returns its address.

    A README.md that the repository already has stays as it is.

    Raises:
        ValueError: the hub refuses or cannot be reached.
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
    """What huggingface_hub raises where the hub refuses, cannot be reached, or its own files cannot be written.

    The errors of its HTTP client (requests, httpx or httpx2 by its version) among them: no OSErrors from httpx on, but
    HfHubHTTPError is made of their base class.
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
