"""Random crops and flips of whole batches, with no Python per image.

In: uint8 images (N, C, H, W) on any device, and their moves. Out: uint8 images of the same shape. As in He et al. 2015 (arXiv
1512.03385, section 4.2) the image is padded on all sides, and a window of the original size is cut from it and mirrored half of the time.
The padding is black, that is level 0 before normalisation, as with torchvision's RandomCrop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moves:
    """The window of each image: its row and column in the padded image (int64, 0 to 2 * padding), and whether it is mirrored."""

    padding: int
    top: Tensor  # (N,)
    left: Tensor  # (N,)
    mirrored: Tensor | None  # (N,) bool; None if no image is mirrored

    def __getitem__(self, span: slice | Tensor) -> "Moves":
        """The moves of some of the images: of a span, or of these numbers (M,)."""
        return Moves(self.padding, self.top[span], self.left[span], None if self.mirrored is None else self.mirrored[span])

    def to(self, device: torch.device) -> "Moves":
        """The same moves on `device`."""
        return Moves(self.padding, self.top.to(device), self.left.to(device), None if self.mirrored is None else self.mirrored.to(device))

    def apply(self, images: Tensor) -> Tensor:
        """Apply each move to the image of the same number: (N, C, H, W) to the same shape and memory format."""
        last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        padded = pad(images, self.padding, torch.channels_last if last else torch.contiguous_format)
        return self.cut(padded, torch.arange(len(images), device=images.device))

    def cut(self, padded: Tensor, chosen: Tensor) -> Tensor:
        """Cut the windows of some images, in one plain gather of rows: several times as fast as advanced indexing.

        Args:
            padded: images padded by `pad`, (M, C, H + 2 * padding, W + 2 * padding).
            chosen: indices of the images, (N,).

        Returns:
            (N, C, H, W), in the memory format of `padded`.
        """
        if not padded.is_contiguous(memory_format=torch.channels_last):
            padded = padded.contiguous()
        count, channels, high, wide = padded.shape
        height, width = high - 2 * self.padding, wide - 2 * self.padding
        planes, depth = (
            (channels, 1) if padded.is_contiguous() else (1, channels)
        )  # memory layout: planes of rows of pixels of `depth` numbers
        rows = padded.as_strided((max(0, count * planes * high * wide - width + 1), width * depth), (depth, 1))  # a row from each pixel on
        plane = chosen[:, None] * planes + torch.arange(planes, device=chosen.device)
        corner = (plane * high + self.top[:, None]) * wide + self.left[:, None]
        starts = corner[:, :, None] + torch.arange(height, device=chosen.device) * wide
        images = rows.index_select(0, starts.flatten()).view(len(chosen), planes, height, width, depth)
        if self.mirrored is not None:
            both = torch.cat([images, images.flip(3)])
            images = both.index_select(0, torch.arange(len(chosen), device=chosen.device) + len(chosen) * self.mirrored)
        return images[..., 0] if depth == 1 else images[:, 0].permute(0, 3, 1, 2)


def pad(images: Tensor, padding: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Convert images (N, C, H, W) to a memory format and add a black border of `padding` pixels; the same tensor if nothing changes."""
    if not padding:
        return images.contiguous(memory_format=layout)
    height, width = (length + 2 * padding for length in images.shape[2:])
    padded = torch.empty((*images.shape[:2], height, width), dtype=images.dtype, device=images.device, memory_format=layout).zero_()
    padded[:, :, padding:-padding, padding:-padding] = images  # in place, so that the set is not copied once more
    return padded


@dataclass(frozen=True)
class Augmentation:
    """How far images may move, in pixels, and whether they may be mirrored (not where left and right matter, as in digits)."""

    padding: int
    flip: bool

    @classmethod
    def natural(cls, height: int, width: int) -> "Augmentation":
        """The augmentation for photographs: an eighth of the shorter side, so 4 pixels at 32x32, and flips."""
        return cls(min(height, width) // 8, flip=True)

    def draw(self, count: int, generator: torch.Generator) -> Moves:
        """Draw random moves for `count` images, on the CPU."""
        top, left = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator)
        mirrored = torch.rand(count, generator=generator) < 0.5 if self.flip else None
        return Moves(self.padding, top, left, mirrored)
