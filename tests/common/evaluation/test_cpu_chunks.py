"""Images that a CPU computes at once."""

from __future__ import annotations

import pytest

from t2t_common.evaluation.cpu_chunks import available_cores, num_chunks


@pytest.mark.parametrize(
    ("batch", "side", "cores", "size"),
    [
        (16, 224, 2, 4),  # two for each core
        (16, 224, 8, 16),  # more caches, and more cores to keep busy
        (12, 224, 2, 4),
        (10, 224, 3, 5),  # 6 do not divide it
        (10, 224, 2, 10),  # neither 4 nor 3 divide it, and 2 at a time would be slower than all
        (17, 224, 2, 17),
        (4, 224, 2, 4),
        (1, 224, 2, 1),
        (0, 224, 2, 0),
        (16, 384, 2, 2),  # of more pixels fewer
        (16, 1024, 2, 1),
        (256, 32, 2, 128),
    ],
)
def test_a_part_has_two_images_a_core(batch: int, side: int, cores: int, size: int):
    parts = num_chunks(batch, side, side, cores=cores)
    assert batch / parts == size


def test_there_is_a_core():
    assert available_cores() >= 1
