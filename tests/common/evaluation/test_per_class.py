from __future__ import annotations

import numpy as np

from t2t_common.evaluation.per_class import as_text, class_report

CONFUSION = np.array([[9, 1, 0, 0], [2, 2, 4, 0], [0, 0, 5, 0], [0, 0, 0, 0]])
NAMES = ["tench, Tinca tinca", "goldfish", "cock", "hen"]


def test_worst_first_with_what_they_are_taken_for():
    report = class_report(CONFUSION, NAMES)
    assert [(one.index, one.images, one.correct, one.accuracy) for one in report] == [
        (1, 8, 2, 25.0),
        (0, 10, 9, 90.0),
        (2, 5, 5, 100.0),
        (3, 0, 0, None),
    ]
    assert [(other.name, other.images) for other in report[0].mistaken_for] == [("cock", 4), ("tench, Tinca tinca", 2)]
    assert report[0].to_json() == {
        "index": 1,
        "name": "goldfish",
        "images": 8,
        "correct": 2,
        "mistaken_for": (
            {"index": 2, "name": "cock", "images": 4},
            {"index": 0, "name": "tench, Tinca tinca", "images": 2},
        ),
        "accuracy": 25.0,
    }


def test_the_table():
    assert as_text(class_report(CONFUSION, NAMES)) == "\n".join(
        [
            "   top-1  images  class     most often confused with",
            " 25.00 %       8  goldfish  cock (4), tench (2)",
            " 90.00 %      10  tench     goldfish (1)",
            "100.00 %       5  cock",
            "       -       0  hen",
        ]
    )
