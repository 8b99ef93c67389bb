"""Build a network from the text of its file and its weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate


def assemble(source: str, filename: str, graph: LayerGraph, state: Mapping[str, Tensor], *, same_types: bool = False) -> nn.Module:
    """Build the network of a file's text with these tensors themselves as its weights, on their device, drawing no random numbers.

    Args:
        source: the file's text.
        filename: its name in error messages.
        graph: the graph that `parse` reads from it.
        state: its state dict.
        same_types: whether the tensors must have the types that the file gives them, usually float32.

    Raises:
        NetworkFileError: if the text is anything but a network.
        RuntimeError: if the weights do not fit the network.
    """
    with torch.device("meta"):
        module = instantiate(source, filename, allocates=False)
    types = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    _assign(module, graph, state)
    other = next((name for name, tensor in state.items() if same_types and tensor.dtype != types[name]), None)
    if other is not None:
        raise RuntimeError(f"{other} is {state[other].dtype}, but the network's is {types[other]}")
    device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
    for tensor in graph.declared:
        if tensor.role == "index":  # positions are in the file, not among the weights
            module.register_buffer(tensor.name, torch.tensor(tensor.values, device=device), persistent=False)
    return module


def _assign(module: nn.Module, graph: LayerGraph, state: Mapping[str, Tensor]) -> None:
    """Make tensors the network's own, layer by layer.

    `load_state_dict` on the whole network would search all tensors for those of each layer: quadratic time in a flat network.

    Raises:
        RuntimeError: if the tensors do not fit the network.
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
        module.load_state_dict(dict(state), assign=True)  # raises again, with a message for the whole network
    for name, tensor in own.items():
        if declared[name].role == "parameter":
            setattr(module, name, nn.Parameter(tensor, requires_grad=declared[name].trainable))
        else:
            module.register_buffer(name, tensor)
