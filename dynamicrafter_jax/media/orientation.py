"""The orientation of a video's frames: one of eight ways to turn and mirror them for display."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from jaxtyping import UInt8


class Orientation(NamedTuple):
    """How to turn a stored frame upright, in this order.

    Attributes:
        transposed: Whether rows become columns.
        rows_reversed: Whether the last row then becomes the first.
        columns_reversed: Whether the last column then becomes the first.
    """

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    @property
    def flips_height(self) -> bool:
        """Whether the stored frame's last row becomes the first row or column."""
        return self.columns_reversed if self.transposed else self.rows_reversed

    @property
    def flips_width(self) -> bool:
        """Whether the stored frame's last column becomes the first row or column."""
        return self.rows_reversed if self.transposed else self.columns_reversed

    def upright(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Returns a view of a stored frame, as displayed."""
        if self.transposed:
            frame = frame.swapaxes(0, 1)
        return frame[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]


def from_matrix(matrix: Sequence[float | int]) -> Orientation:
    """Returns the orientation nearest to a display matrix.

    Args:
        matrix: (a, b, u, c, d, v, ...) as in QuickTime, where u, v and everything after v are
            ignored: x' = a x + c y and y' = b x + d y, with y downwards. Scales don't matter.
    """
    a, b, _, c, d, *_ = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, rows_reversed=b < 0, columns_reversed=c < 0)
    return Orientation(False, rows_reversed=d < 0, columns_reversed=a < 0)


def of_frame(frame: VideoFrame) -> Orientation:
    """Returns the orientation of a decoded frame, from its file or the frame itself."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    return from_matrix(memoryview(bytes(matrix)).cast("i").tolist())
