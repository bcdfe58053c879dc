"""Mapping of the data's classes to the model's outputs, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from t2t_common.data.readers.formats import check_classes
from t2t_common.data.readers.sources import FolderSource, Source, in_words, notes_of
from t2t_common.data.token_labels import TokenLabelSource
from t2t_config.class_names import both_lists, imagenet_classes, match_classes
from t2t_config.text import escaped

BY_NUMBER = "label N of the data is used as output N of the model"


class MappedSource:
    """Source that relabels the images of another source: label `n` becomes `places[n]`."""

    def __init__(self, source: Source, places: Sequence[int], class_names: Sequence[str]) -> None:
        self.source, self.places = source, list(places)
        self.num_classes = len(class_names)
        self.class_names: list[str] | None = list(class_names)
        self.notes: Sequence[str] = getattr(source, "notes", ())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.source[index]
        return image, self.places[label]


def for_head(
    source: Source, num_classes: int, saved: Any = None, named: Sequence[str] | None = None
) -> tuple[Source, list[str]]:
    """Return `source` with labels that match the head's outputs, and notes for the user.

    Classes are looked up by name among those of the weights, else among those given by the user, else among those of
    ImageNet-1k if no names are known and there are 1000 outputs. Labels are kept as they are only if one side has no
    names or if the data numbers ImageNet's classes.

    Args:
        source: Images.
        num_classes: Number of outputs of the head.
        saved: `class_names` in the metadata of the weights, if any.
        named: Names of the outputs given by the user.

    Raises:
        ValueError: If both sides name their classes and some of the data's are not among the model's, or if the data
            has more classes than the head.
    """
    data = source.class_names
    given = [names for names in (saved, named) if names and isinstance(names, list | tuple)]
    lists = [list(map(str, names))[:num_classes] for names in given]
    imagenet = list(imagenet_classes())
    if not saved and num_classes == len(imagenet):
        lists.append(imagenet)
    if data is not None:
        for known in lists:
            places = match_classes(data, known)
            if places is not None:
                return in_order(source, known, places)
    check_classes(source, num_classes)
    if data is None:
        return source, [f"the data does not name its classes: {BY_NUMBER}"]
    if any(_are_imagenet(known) for known in lists) and _are_numbers(data) and len(data) == len(imagenet):
        return source, [f"the data numbers its {len(data)} classes: {BY_NUMBER}"]
    if lists and (saved or (lists[-1] is imagenet and set(data) & set(imagenet))):
        raise ValueError(unmatched(lists[0], data))
    return source, [f"the weights do not name their classes: {BY_NUMBER}"]


def in_order(
    source: Source, class_names: Sequence[str], places: Sequence[int] | None = None
) -> tuple[Source, list[str]]:
    """Return `source` with its classes numbered as in `class_names`, and notes for the user.

    Args:
        source: Images with named classes.
        class_names: Names that include all classes of `source`.
        places: Result of `match_classes`, if already computed.

    Raises:
        ValueError: If a class of `source` is missing, or if `source` has label maps that would need other class
            numbers.
    """
    data = source.class_names or []
    names = [escaped(name) for name in class_names]
    if places is None:
        places = match_classes(data, names)
    if places is None:
        raise ValueError(unmatched(names, data))
    if list(places) == list(range(len(places))):
        return source, []
    if isinstance(source, TokenLabelSource):
        raise ValueError(f"label maps name classes by numbers, and these have others; {_lists(names, data)}")
    note = f"classes are mapped by name: {data[0]} is output {places[0]}, {data[-1]} is output {places[-1]}"
    if isinstance(source, FolderSource) and sorted(data) == sorted(names):
        return source.reordered(names), [note]
    return MappedSource(source, places, names), [note]


def same_classes(train: Source, val: Source) -> Source:
    """Return `val` with the class numbers of `train`, by name; unchanged if either does not name its classes.

    Raises:
        ValueError: If `val` has classes that `train` lacks.
    """
    if train.class_names is None or val.class_names is None or train.class_names == val.class_names:
        return val
    places = match_classes(val.class_names, train.class_names)
    if places is None:
        lists = both_lists(train.class_names, val.class_names, ("training", "validation"))
        raise ValueError(f"the validation images have classes that training lacks ({lists}): give both the same names")
    found, told = in_order(val, train.class_names, places)
    if isinstance(found, MappedSource):
        found.notes = [*found.notes, *(f"validation: {note}" for note in told)]
    return found


def for_run(
    train: Source, val: Source, num_classes: int, *, begun: Sequence[str] | None, head: Sequence[str] | None
) -> tuple[Source, Source, list[str]]:
    """Return both sources with their classes numbered as the run needs them, and notes for the user.

    Args:
        train: Training images.
        val: Validation images.
        num_classes: Number of outputs of the model.
        begun: Class names of the resumed run; they take precedence.
        head: Class names of the classifier that the run starts from, empty if it does not name them; None for a new
            classifier.

    Raises:
        ValueError: If the data has other classes.
    """
    sources, notes = [], notes_of(train, val)
    for source in (train, val):
        found, told = source, list[str]()
        if begun is not None and source.class_names is not None:
            if match_classes(source.class_names, begun) is None:
                lists = both_lists(begun, source.class_names, (f"{len(begun)} of the run", "those of the data"))
                raise ValueError(f"the run was started with other classes ({lists}): choose another --workdir")
            found, told = in_order(source, begun)
            told = [f"classes are numbered as at the start of the run: {in_words(begun)}"] if told else []
        elif begun is None and head is not None:
            try:
                found, told = for_head(source, num_classes, list(head))
            except ValueError as error:
                raise ValueError(f"{error}, or train a new classifier with --fresh-head") from None
        sources.append(found)
        notes += told
    return sources[0], sources[1], list(dict.fromkeys(notes))


def other_order(stored: Any, here: Sequence[str] | None) -> list[str] | None:
    """Return the class names stored in a run's checkpoint if they or their order differ from the data's, else None."""
    if not stored or here is None or not isinstance(stored, list):
        return None
    names = [escaped(str(name)) for name in stored]
    return None if names == list(here) else names


def unmatched(known: Sequence[str], data: Sequence[str]) -> str:
    """Return the error message for data classes that the model does not have: both lists and what to do."""
    return (
        f"the classes of the data are not those of the weights ({_lists(known, data)}): rename the class folders, or "
        "give the data a classes.txt"
    )


def _lists(known: Sequence[str], data: Sequence[str]) -> str:
    return both_lists(known, data, (f"{len(known)} of the weights", f"{len(data)} of the data"))


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() and int(name) == place for place, name in enumerate(names))


def _are_imagenet(names: Sequence[str]) -> bool:
    return match_classes(names, list(imagenet_classes())) == list(range(len(imagenet_classes())))
