"""How a video's frames lie: one of eight ways to turn and mirror them before they are shown."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from jaxtyping import UInt8


class Orientation(NamedTuple):
    """What to do to a stored frame, in this order.

    Attributes:
        transposed: Rows become columns.
        rows_reversed: Then the last row becomes the first.
        columns_reversed: And the last column the first.
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
        """Returns a view of a stored frame as it is shown."""
        if self.transposed:
            frame = frame.swapaxes(0, 1)
        return frame[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]


def from_matrix(matrix: Sequence[float | int]) -> Orientation:
    """Returns the orientation nearest to a display matrix.

    Args:
        matrix: (a, b, u, c, d, v, ...) as QuickTime has it, of which u, v and all after them are
            ignored: x' = a x + c y and y' = b x + d y, with y downwards. Scales don't matter.
    """
    a, b, _, c, d, *_ = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, rows_reversed=b < 0, columns_reversed=c < 0)
    return Orientation(False, rows_reversed=d < 0, columns_reversed=a < 0)


def of_frame(frame: VideoFrame) -> Orientation:
    """Returns how a decoded frame is to be shown, by what its file or the frame itself says."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    return from_matrix(memoryview(bytes(matrix)).cast("i").tolist())
