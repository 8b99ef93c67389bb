"""Arithmetic of sliding windows and shapes, for the shape rules."""

from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...]


def shape_text(shape: Shape) -> str:
    """Return (3, 32, 32) as 3x32x32."""
    return "x".join(map(str, shape))


def pair(value: int | tuple[int, ...], rank: int = 2) -> Shape:
    """Repeat a size for each of `rank` dimensions; a tuple is returned as it is."""
    return (value,) * rank if isinstance(value, int) else value


def image_of(shape: Shape) -> tuple[int, int, int, int]:
    """Return the sizes (N, C, H, W) of a batch of images.

    Raises:
        ValueError: for other shapes.
    """
    if len(shape) != 4:
        raise ValueError(f"takes images (C, H, W), not {shape_text(shape[1:])}")
    return shape[0], shape[1], shape[2], shape[3]


def window_count(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool = False) -> int:
    """Return how many windows fit along a dimension."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil else 0)) // stride + 1
    # torch drops a last window that would start in the padding on the right
    return count - 1 if ceil and (count - 1) * stride >= size + padding else count


def check_padding(mode: str, image: Shape, padding: Shape) -> None:
    """Check that padding copied from the image is no wider than the image, and with `reflect` narrower.

    Raises:
        ValueError: if it is too wide.
    """
    spared = {"reflect": 1, "circular": 0}.get(mode)
    if spared is not None and any(p > n - spared for n, p in zip(image, padding, strict=True)):
        raise ValueError(f"padding {shape_text(padding)} is too wide for an image of {shape_text(image)}")
