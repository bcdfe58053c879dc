"""Models written to and made from a hub folder: what both frameworks do alike.

What lies in such a folder is t2t_config/weights/hub.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from t2t_config import model_config
from t2t_config.weights.hub import CONFIG, WEIGHTS, differences, read_metadata, write_folder
from t2t_config.weights.load_report import LoadReport
from t2t_config.weights.metadata import create_arguments, describe_model, take_preprocessing, to_text
from t2t_config.weights.untrusted import making


def save_model(
    model: Any,
    folder: str | Path,
    metadata: Mapping[str, Any] | None,
    *,
    where: str,
    own_shapes: Callable[[Any], Mapping[str, Any]],
    made_shapes: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    write_weights: Callable[[Any, Path, Mapping[str, str]], object],
) -> None:
    """Write `model` as a hub folder.

    Args:
        model: of `create_model`.
        folder: created if need be.
        metadata: for config.json and the card.
        where: the folder or repository that the card names.
        own_shapes: of the tensors of a model, by name.
        made_shapes: of the model that `create_model` makes from these arguments.
        write_weights: (model, file, metadata as text).

    Raises:
        ValueError: the model is not of `create_model` or was changed since, or the folder cannot be written.
    """
    facts = describe_model(model, metadata)
    if problems := differences(own_shapes(model), made_shapes(create_arguments(facts))):
        raise ValueError(f"the model is no {facts['model']} any more: {problems}")
    write_folder(folder, facts, lambda path: write_weights(model, path, to_text(facts)), where)


def load_model(
    folder: Path,
    arguments: Mapping[str, Any],
    *,
    check: Callable[[Mapping[str, Any], Path], None],
    create: Callable[..., Any],
    load: Callable[[Any, Path], LoadReport],
) -> Any:
    """The model in a hub folder, with its weights; a UserWarning tells what was fitted to other sizes.

    Args:
        folder: on this disk.
        arguments: of `create_model`, in place of the saved ones.
        check: refuses arguments whose model the file of weights cannot hold.
        create: `create_model`.
        load: loads the file of weights into a model.

    Raises:
        FileNotFoundError, ValueError: damaged files, no classifier in them, or sizes that cannot be fitted.
    """
    with making(folder / CONFIG):
        metadata = read_metadata(folder)
        saved = create_arguments(metadata)
        check(saved, folder / WEIGHTS)
    model = create(**{**saved, **arguments})
    other_classes = model.num_classes != saved.get("num_classes", model_config(saved["name"]).num_classes)
    other_head = arguments.get("aux_head", False) and not saved.get("aux_head", False)
    report = load(model, folder / WEIGHTS)
    report.warn(fresh_classifiers=other_classes or other_head, stacklevel=4)  # the caller of `from_pretrained`
    take_preprocessing(model, metadata, classes=not other_classes)
    return model
