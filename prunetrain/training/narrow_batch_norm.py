"""BatchNorm of few channels on a CPU, channels last, faster than torch's own and with the same results.

torch sums over pixels into one buffer per thread, with one number per channel, and these buffers lie side by side. If a buffer ends within
a cache line, threads take that line from each other at every pixel; if the channels do not fill a vector, they are added one by one. With
two threads, 20 channels take four times as long as 16 (`benchmarks/batch_norm.py`), so a cut that left such a count cost the time that it
saved. Here a row of an image stands for a pixel, and width times channels for the channels. The sums for each place in a row are then
combined for each channel.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LINE, _VECTOR = 16, 8  # float32 numbers in a cache line, and in a vector of most CPUs
_MANY_PIXELS = 2**14  # of a batch; with fewer, the calls take longer than they save


def speed_up_batch_norm_(model: nn.Module, device: torch.device, *, compiled: bool = False) -> None:
    """Let a network's BatchNorm2d layers go over rows in train mode wherever that is faster; tensors, names and results stay.

    Args:
        model: changed in place. Subclasses of BatchNorm2d and other layers stay as they are.
        device: where the network computes; nothing changes except on a CPU.
        compiled: whether torch compiles the network, which generates its own BatchNorm.
    """
    if device.type == "cpu" and not compiled:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = _NarrowBatchNorm2d


class _NarrowBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d whose train mode goes over rows where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        mean, variance, share = self.running_mean, self.running_var, self.momentum
        usual = self.training and self.affine and self.track_running_stats
        if not usual or mean is None or variance is None or share is None or not faster_over_rows(input, self.weight):
            return super().forward(input)
        assert self.num_batches_tracked is not None
        output, batch_mean, batch_variance = over_rows(input, self.weight, self.bias, self.eps)
        count = input.numel() // input.shape[1]
        self.num_batches_tracked.add_(1)
        mean.lerp_(batch_mean, share)
        variance.lerp_(batch_variance * (count / (count - 1)), share)
        return output


def faster_over_rows(images: Tensor, weight: Tensor) -> bool:
    """Whether `over_rows` takes less time than torch's BatchNorm, as measured by `benchmarks/batch_norm.py`.

    Args:
        images: the input, (N, C, H, W).
        weight: the scales, (C,).
    """
    if images.device.type != "cpu" or weight.dtype != torch.float32 or images.dim() != 4:
        return False
    count, channels, height, width = images.shape
    if (
        channels == 1
        or channels != len(weight)
        or width == 1
        or count * height * width < _MANY_PIXELS
        or not images.is_contiguous(memory_format=torch.channels_last)
    ):
        return False
    few = _LINE * (1 + (images.dtype != torch.float32) + (torch.get_num_threads() > 1))
    return (channels % _LINE != 0 and channels < few) or (channels % _VECTOR != 0 and channels < few + _LINE)


def over_rows(images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Apply BatchNorm in train mode, row by row.

    Args:
        images: (N, C, H, W), channels last; of any floating type that BatchNorm takes.
        weight: the scales, (C,), float32.
        bias: the shifts, (C,), float32.
        eps: what is added to the variance.

    Returns:
        The normalised images, in their type and memory format, and the batch's mean and biased variance, (C,), without a gradient.
    """
    rows, mean, variance = _OverRows.apply(images, weight, bias, eps)
    return _images(rows, images.shape), mean, variance


class _OverRows(torch.autograd.Function):
    """BatchNorm in train mode (arXiv 1502.03167, algorithm 1), and the gradients of its section 3.

    The mean of a channel is the mean of the means at the places of a row. Its variance is the mean of their variances and the variance of
    their means.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """As `over_rows`, except that the normalised images are returned as rows: (N * H, W * C)."""
        rows, width = _rows(images), images.shape[3]
        unused = weight.new_zeros(rows.shape[1])  # running statistics, whose type sets that of the sums
        means, variances = (each.view(width, -1) for each in torch.batch_norm_update_stats(rows, unused, unused, 0.0))
        variance, mean = torch.var_mean(means, 0, correction=0)
        variance += variances.mean(0)
        places = torch.stack((weight, bias, mean, variance)).repeat(1, width)
        ctx.save_for_backward(images, places)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return _normalised(rows, places[0], places[1], mean=places[2], variance=places[3], eps=eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With g the gradient, x^ the normalised images and s = weight / sqrt(variance + eps): s * (g - mean(g) - x^ * mean(g * x^)).

        In half precision s * (g - mean(g)) and the rest are rounded before they are added.
        """
        images, places = ctx.saved_tensors
        weight, _, mean, variance = places
        rows, width, eps = _rows(images), images.shape[3], ctx.eps
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            along, rows, weight, mean, variance, None, None, False, eps, [False, True, True]
        )
        sums = torch.stack((by_weight, by_bias)).view(2, width, -1).sum(1)
        mean_with, mean_alone = (sums * (sums.shape[1] / rows.numel())).repeat(1, width)
        scale = weight * (variance + eps).rsqrt()
        if along.dtype == scale.dtype:
            result = _normalised(rows, -scale * mean_with, -scale * mean_alone, mean=mean, variance=variance, eps=eps)
            result.addcmul_(along, scale)
        else:  # addcmul would round the scale
            nothing = torch.zeros_like(mean)
            result = _normalised(along, weight, nothing, mean=mean_alone, variance=variance, eps=eps)
            result += _normalised(rows, -scale * mean_with, nothing, mean=mean, variance=variance, eps=eps)
        return _images(result, images.shape), sums[0], sums[1], None


def _normalised(rows: Tensor, weight: Tensor, bias: Tensor, *, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """The rows as weight * (rows - mean) / sqrt(variance + eps) + bias, in the type of the rows."""
    return torch.native_batch_norm(rows, weight, bias, mean, variance, False, 0.0, eps)[0]


def _rows(images: Tensor) -> Tensor:
    """(N, C, H, W) as (N * H, W * C); a view if the memory format is channels last."""
    return images.permute(0, 2, 3, 1).reshape(images.shape[0] * images.shape[2], -1)


def _images(rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_rows`, to a shape (N, C, H, W), channels last."""
    count, channels, height, width = shape
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)
