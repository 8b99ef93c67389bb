"""Checking that a generated network computes bit for bit what the model it was traced from does, in eval mode and in a training step.

Both share their weights when they go in, as `Traced.state` gives them; `share_weights` puts them in.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunetrain.graph.tracing.journal import outputs_of


def share_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a generated network the traced weights: parameters share the model's memory; buffers are copies, because training changes them.

    Raises:
        RuntimeError: if `state` is not exactly the network's state dict.
    """
    if list(state) != list(network.state_dict()):
        raise RuntimeError("the traced state has other names, or another order, than the network's state dict")
    parameters = dict(network.named_parameters())
    network.load_state_dict({name: tensor if name in parameters else tensor.clone() for name, tensor in state.items()}, assign=True)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Replace zeros and ones by small random numbers, so that no branch of the model is silent: new networks scale some by 0 or 1e-6."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or (tensor.ndim > 1 and bool(tensor.any())):
                continue
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if name.endswith(("weight", "var", "std", "gamma", "scale")) else noise / 5 - 0.1)


def outputs(module: nn.Module, images: Tensor) -> list[Tensor]:
    """All tensors that a module returns, the main one first."""
    return outputs_of(module(images))


def batch_of(shape: Sequence[int], seed: int = 1) -> Tensor:
    """Random images of a shape (N, C, H, W)."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def identical_in_eval(model: nn.Module, network: nn.Module, shapes: Sequence[Sequence[int]]) -> bool:
    """Whether both give the same bits in eval mode, and not just constants, for random images of these shapes (N, C, H, W)."""
    model.eval()
    network.eval()
    with torch.inference_mode():
        for shape in shapes:
            images = batch_of(shape)
            expected, found = outputs(model, images), outputs(network, images)
            if not _same(expected, found) or not all(bool(tensor.isfinite().all()) and bool(tensor.std() > 0) for tensor in expected):
                return False
    return True


def identical_in_training(model: nn.Module, network: nn.Module, names: Mapping[str, str], shape: Sequence[int], seed: int = 2) -> list[str]:
    """List what differs after one training step of each, from the same state of the random generators; ideally nothing.

    Args:
        model: the model as it was traced, weights as in `network`; its running statistics change.
        network: the generated network.
        names: the network's names for the model's parameters and buffers.
        shape: (N, C, H, W) of the random images.
        seed: of the random numbers that dropout draws.

    Returns:
        "outputs", "random numbers", "the images' gradient", and the qualified names of parameters whose gradients, and buffers whose
        numbers, differ.
    """
    results, states, gradients = [], [], []
    for module in (model, network):
        torch.manual_seed(seed)
        module.train()
        module.zero_grad(set_to_none=True)
        images = batch_of(shape).requires_grad_()
        found = outputs(module, images.clone())  # which the module may change in place
        sum(((number + 1) * tensor.square().sum() for number, tensor in enumerate(found)), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        results.append([tensor.detach() for tensor in found])
        states.append(torch.get_rng_state())
        gradients.append(torch.zeros(()) if images.grad is None else images.grad)
    different = [] if _same(*results) else ["outputs"]
    if not torch.equal(*states):
        different.append("random numbers")
    if not torch.equal(*gradients):
        different.append("the images' gradient")
    mine, theirs = _tensors(model), _tensors(network)
    for qualified, flat in names.items():
        one, two = mine[qualified], theirs[flat]
        if isinstance(one, nn.Parameter):
            pair = [torch.zeros(()) if tensor.grad is None else tensor.grad for tensor in (one, two)]
            if not torch.equal(*pair) and not (one.grad is None and not pair[1].any()):
                different.append(qualified)
        elif not torch.equal(one, two):
            different.append(qualified)
    return different


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def _same(expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    return len(expected) == len(found) and all(map(torch.equal, expected, found))
