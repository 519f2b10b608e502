"""Shows transparent frames that ffmpeg decodes over white, as is done for pictures."""

import av
import numpy as np
from av.video.reformatter import Interpolation

_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


def on_white(frame: av.VideoFrame) -> av.VideoFrame:
    """Returns a frame over white; the same frame if it is opaque.

    Metadata of the frame, such as its orientation, is not kept.
    """
    kind = frame.format
    if not kind.has_palette and not any(part.is_alpha for part in kind.components):
        return frame
    pixels = frame.to_ndarray(format="rgba", interpolation=_EXACT)
    colours, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return frame
    # At most 255 x 255, plus half the divisor for rounding.
    shown = (colours * alpha + 255 * (255 - alpha) + 127) // 255
    return av.VideoFrame.from_ndarray(shown.astype(np.uint8), format="rgb24")
