"""BatchNorm over the images of all workers (`--sync-batch-norm`), so that they normalise as one process with the whole batch would.

In: a network with `torch.nn`'s BatchNorm. Out: the same network, synchronised, with the same parameters and buffers under the same names.
On GPUs it uses torch's SyncBatchNorm, which has no CPU version; on a CPU, the class below.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunetrain.training.distribution import Ranks


def synchronise(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return the network with every BatchNorm synchronised; its tensors stay the same objects. A single process gets it unchanged."""
    if ranks.world_size == 1:
        return model
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model, ranks.group)  # type: ignore[no-untyped-call, no-any-return]
    for name, module in model.named_children():
        setattr(model, name, _SyncBatchNorm(module, ranks) if isinstance(module, _BatchNorm) else synchronise(module, ranks))
    return model


class _SyncBatchNorm(_BatchNorm):
    """BatchNorm whose mean and variance in train mode are those of all ranks' images (arXiv 1502.03167, algorithm 1).

    The variance is the mean of squared distances from the common mean: a second sum over the ranks, exact to rounding.
    """

    def __init__(self, module: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats, device="meta")
        self._parameters, self._buffers = module._parameters, module._buffers
        self.training = module.training
        self._ranks = ranks

    def _check_input_dim(self, input: Tensor) -> None: ...

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...); in eval mode with the running statistics, as BatchNorm does."""
        if not self.training and self.track_running_stats:
            return super().forward(input)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1, *(1 for _ in dims[1:])]
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        sums = torch.cat([wide.sum(dims), wide.new_tensor([input.numel() // input.shape[1]])])
        sums = self._ranks.sum_with_gradient(sums)
        count = sums[-1].detach()
        centred = wide - (sums[:-1] / count).view(shape)
        variance = self._ranks.sum_with_gradient(centred.square().sum(dims)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_((sums[:-1].detach() / count).to(self.running_mean.dtype), share)
            self.running_var.lerp_((variance.detach() * count / (count - 1)).to(self.running_var.dtype), share)
        result = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)
