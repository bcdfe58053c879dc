"""Save models to and load models from a hub folder: code shared by both frameworks.

For the contents of a hub folder, see t2t_config/weights/hub.py.
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
        model: Model created by `create_model`.
        folder: Folder to write; created if needed.
        metadata: Metadata for config.json and the model card.
        where: Folder or repository named in the model card.
        own_shapes: model -> shapes of its tensors by name.
        made_shapes: arguments -> shapes of the model that `create_model` creates from them.
        write_weights: Writes the weights, given (model, file, metadata as text).

    Raises:
        ValueError: The model was not created by `create_model` or was modified, or the folder cannot be written.
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
    """Load the model of a hub folder with its weights; a UserWarning lists tensors adapted to other sizes.

    Args:
        folder: Local folder.
        arguments: Arguments of `create_model` that override the saved ones.
        check: Raises an error if the weights file is too small for the model of the arguments.
        create: `create_model`.
        load: Loads the weights file into a model.

    Raises:
        FileNotFoundError, ValueError: Files are damaged, lack a classifier, or have sizes that cannot be adapted.
    """
    with making(folder / CONFIG):
        metadata = read_metadata(folder)
        saved = create_arguments(metadata)
        check(saved, folder / WEIGHTS)
    model = create(**{**saved, **arguments})
    other_classes = model.num_classes != saved.get("num_classes", model_config(saved["name"]).num_classes)
    other_head = arguments.get("aux_head", False) and not saved.get("aux_head", False)
    report = load(model, folder / WEIGHTS)
    report.warn(fresh_classifiers=other_classes or other_head, stacklevel=4)  # caller of `from_pretrained`
    take_preprocessing(model, metadata, classes=not other_classes)
    return model
