"""A network out of the text of its file and its weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate


def assemble(source: str, filename: str, graph: LayerGraph, state: Mapping[str, Tensor], *, same_types: bool = False) -> nn.Module:
    """The network of a file's text with these very tensors as its weights, on their device. Draws no random numbers.

    Args:
        source: the file's text.
        filename: how error messages call it.
        graph: what `parse` reads in it.
        state: its state dict.
        same_types: whether the tensors must be of the types that the file gives them, float32 above all.

    Raises:
        NetworkFileError: if the text is anything but a network.
        RuntimeError: if the weights do not fit it.
    """
    with torch.device("meta"):
        module = instantiate(source, filename, allocates=False)
    types = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    _assign(module, graph, state)
    other = next((name for name, tensor in state.items() if same_types and tensor.dtype != types[name]), None)
    if other is not None:
        raise RuntimeError(f"{other} is {state[other].dtype}, and the network's {types[other]}")
    device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
    for tensor in graph.declared:
        if tensor.role == "index":  # positions, which stand in the file and not among the weights
            module.register_buffer(tensor.name, torch.tensor(tensor.values, device=device), persistent=False)
    return module


def _assign(module: nn.Module, graph: LayerGraph, state: Mapping[str, Tensor]) -> None:
    """Make tensors the network's own, layer by layer.

    `load_state_dict` of the whole looks through all tensors for those of each layer, and a flat network has no fewer layers than that.

    Raises:
        RuntimeError: if they do not fit it.
    """
    declared = {tensor.name: tensor for tensor in graph.declared if tensor.role != "index"}
    own = {name: tensor for name, tensor in state.items() if "." not in name}
    parts: dict[str, dict[str, Tensor]] = {layer.name: {} for layer in graph.layers}
    for name, tensor in state.items():
        layer, _, part = name.partition(".")
        if part:
            parts.setdefault(layer, {})[part] = tensor
    try:
        for name, part_of_state in parts.items():
            module.get_submodule(name).load_state_dict(part_of_state, assign=True)
        fits = {name: tuple(tensor.shape) for name, tensor in own.items()} == {name: tensor.shape for name, tensor in declared.items()}
    except (AttributeError, RuntimeError):
        fits = False
    if not fits:
        module.load_state_dict(dict(state), assign=True)  # finds the fault again, and says it of the whole network
    for name, tensor in own.items():
        if declared[name].role == "parameter":
            setattr(module, name, nn.Parameter(tensor, requires_grad=declared[name].trainable))
        else:
            module.register_buffer(name, tensor)
