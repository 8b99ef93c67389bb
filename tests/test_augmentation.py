"""Random crops and flips, and normalisation, of batches: by hand, against plain indexing, in both memory formats."""

import pytest
import torch
from torch.nn import functional as F

from prunetrain.training.data.augmentation import Augmentation, Moves, pad
from prunetrain.training.data.base import Normalizer, Statistics, epoch_generator


def moves(padding: int, top: list[int], left: list[int], mirrored: list[bool] | None = None) -> Moves:
    return Moves(padding, torch.tensor(top), torch.tensor(left), None if mirrored is None else torch.tensor(mirrored))


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 5), (2, 1, 3), (3, 2, 1)], ids=str)
def test_windows_do_not_hang_on_the_memory_format(shape: tuple[int, ...], padding: int) -> None:
    """The same pixels as by plain indexing, in the format of the images."""
    images = torch.randint(0, 256, (9, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = Augmentation(padding, flip=True).draw(9, epoch_generator(0, 0))
    border = F.pad(images, (padding,) * 4)
    _, height, width = shape
    windows = [border[n, :, drawn.top[n] :, drawn.left[n] :][:, :height, :width] for n in range(9)]
    assert drawn.mirrored is not None
    expected = torch.stack([window.flip(2) if mirror else window for window, mirror in zip(windows, drawn.mirrored, strict=True)])
    for layout in (torch.contiguous_format, torch.channels_last):
        padded = pad(images, padding, layout)
        assert torch.equal(padded, border)
        found = drawn.cut(padded, torch.arange(9))
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=layout)


def test_moves_computed_by_hand() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    result = moves(1, [0, 1, 2, 1], [0, 1, 1, 2], [False, False, False, True]).apply(image.expand(4, 1, 2, 2))
    assert result.dtype == torch.uint8
    assert result.squeeze(1).tolist() == [
        [[0, 0], [0, 1]],  # down and to the right
        [[1, 2], [3, 4]],  # the middle
        [[3, 4], [0, 0]],  # up
        [[0, 2], [0, 4]],  # to the left: [2, 0], [4, 0]; then mirrored
    ]


def test_every_moved_image_is_a_window_of_its_padded_self() -> None:
    images = torch.randint(1, 256, (64, 3, 9, 7), dtype=torch.uint8, generator=epoch_generator(0, 0))
    drawn = Augmentation(2, flip=True).draw(64, epoch_generator(0, 1))
    assert drawn.mirrored is not None
    padded = F.pad(images, (2, 2, 2, 2))
    moved = drawn.apply(images)
    for i, (top, left, mirrored) in enumerate(zip(drawn.top.tolist(), drawn.left.tolist(), drawn.mirrored.tolist(), strict=True)):
        window = padded[i, :, top : top + 9, left : left + 7]
        assert torch.equal(moved[i], window.flip(2) if mirrored else window)
    assert torch.equal(drawn[5:9].apply(images[5:9]), moved[5:9])


def test_draws_cover_all_moves_evenly() -> None:
    drawn = Augmentation(1, flip=True).draw(9000, epoch_generator(0, 0))
    assert drawn.mirrored is not None
    counts = torch.bincount(3 * drawn.top + drawn.left, minlength=9)
    assert counts.shape == (9,)
    assert (counts - 1000).abs().max() < 150  # five standard deviations
    assert abs(drawn.mirrored.float().mean().item() - 0.5) < 0.03
    assert Augmentation(1, flip=False).draw(5, epoch_generator(0, 0)).mirrored is None


def test_without_padding_and_flips_nothing_moves() -> None:
    images = torch.randint(0, 256, (4, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(Augmentation(0, flip=False).draw(4, epoch_generator(0, 0)).apply(images), images)


def test_normalisation_does_not_hang_on_the_memory_format_nor_on_the_batch_before() -> None:
    normalize = Normalizer(Statistics(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4)), torch.device("cpu"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.1, 0.5, 0.9), (0.2, 0.3, 0.4)))
    for width in (5, 7, 5):
        images = torch.randint(0, 256, (2, 3, 4, width), dtype=torch.uint8, generator=epoch_generator(0, width))
        plain = normalize(images)
        last = normalize(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(plain, (images / 255 - mean) / std)
        assert torch.equal(plain, last)
        assert (plain.is_contiguous(), last.is_contiguous(memory_format=torch.channels_last)) == (True, True)
