"""Turning images upright by EXIF's Orientation, as Pillow's `ImageOps.exif_transpose` does.

In: an open image file. Out: how to turn it, or None. torchvision does not turn images.
"""

from dataclasses import dataclass

from PIL import Image

_TAG = 274
_METADATA_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow looks for the orientation

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class Turn:
    """How an image is turned upright.

    Attributes:
        method: Pillow's.
        swapped: whether width and height are swapped.
        from_right: whether x counts from the right afterwards.
        from_bottom: whether y counts from the bottom afterwards.
    """

    method: Image.Transpose
    swapped: bool
    from_right: bool
    from_bottom: bool

    def box(self, size: tuple[int, int], extent: tuple[float, float]) -> Box:
        """The position of an image's valid part after turning it: left, top, right, bottom.

        Args:
            size: width and height before turning.
            extent: width and height of the valid part before turning, from the left and the top.
        """
        (width, height), (wide, high) = (size[::-1], extent[::-1]) if self.swapped else (size, extent)
        left, top = width - wide if self.from_right else 0.0, height - high if self.from_bottom else 0.0
        return left, top, left + wide, top + high


_TURNS = {
    2: Turn(Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: Turn(Image.Transpose.ROTATE_180, False, True, True),
    4: Turn(Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: Turn(Image.Transpose.TRANSPOSE, True, False, False),
    6: Turn(Image.Transpose.ROTATE_270, True, True, False),
    7: Turn(Image.Transpose.TRANSVERSE, True, True, True),
    8: Turn(Image.Transpose.ROTATE_90, True, False, True),
}
"""Turns by EXIF's Orientation; 1 is upright."""


def read_turn(file: Image.Image) -> Turn | None:
    """How to turn the pixels of a file that was read; None if it holds no readable orientation."""
    if not _METADATA_KEYS & file.info.keys():
        return None
    try:
        return _TURNS.get(file.getexif().get(_TAG, 1))
    except Exception:  # damaged EXIF is common, and does not affect the pixels
        return None
