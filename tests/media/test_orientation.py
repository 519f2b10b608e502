"""The eight ways in which a frame can lie, against the places that their matrices give."""

import itertools

import numpy as np
import pytest

from dynamicrafter_jax.media.orientation import Orientation, from_matrix

FRAME = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def placed(matrix: tuple[int, ...]) -> np.ndarray:
    """Each pixel where a matrix moves its middle: x' = a x + c y, y' = b x + d y."""
    a, b, _, c, d = matrix
    points = {
        (b * x + d * y, a * x + c * y): FRAME[y, x] for y, x in itertools.product((0, 1), (0, 1, 2))
    }
    rows, columns = (sorted({point[i] for point in points}) for i in (0, 1))
    return np.stack([np.stack([points[y, x] for x in columns]) for y in rows])


SIGNS = list(itertools.product((1, -1), (1, -1)))
EIGHT = [(x, 0, 0, 0, y) for x, y in SIGNS] + [(0, y, 0, x, 0) for x, y in SIGNS]


@pytest.mark.parametrize("matrix", EIGHT)
def test_pixels_lie_where_the_matrix_says(matrix: tuple[int, ...]):
    found = from_matrix(matrix)
    np.testing.assert_array_equal(found.upright(FRAME), placed(matrix))
    assert from_matrix([65536 * number for number in matrix]) == found  # scales don't matter
    a, b, _, c, d = matrix
    tilted = (a - 0.1 * b, b + 0.1 * a, 0, c - 0.1 * d, d + 0.1 * c)
    assert from_matrix(tilted) == found


def test_the_eight_differ_and_no_matrix_is_none():
    assert len({from_matrix(matrix) for matrix in EIGHT}) == 8
    assert from_matrix((0, 0, 0, 0, 0)) == from_matrix(EIGHT[0]) == Orientation()
