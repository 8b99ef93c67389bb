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
    module.load_state_dict(dict(state), assign=True)
    other = next((name for name, tensor in state.items() if same_types and tensor.dtype != types[name]), None)
    if other is not None:
        raise RuntimeError(f"{other} is {state[other].dtype}, and the network's {types[other]}")
    device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
    for tensor in graph.declared:
        if tensor.role == "index":  # positions, which stand in the file and not among the weights
            module.register_buffer(tensor.name, torch.tensor(tensor.values, device=device), persistent=False)
    return module
