"""A network out of the text of its file and its weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate


def assemble(source: str, filename: str, graph: LayerGraph, state: Mapping[str, Tensor]) -> nn.Module:
    """The network of a file's text with these very tensors as its weights, on their device. Draws no random numbers.

    Args:
        source: the file's text.
        filename: how error messages call it.
        graph: what `parse` reads in it.
        state: its state dict.

    Raises:
        NetworkFileError: if the text is anything but a network.
        RuntimeError: if the weights do not fit it.
    """
    with torch.device("meta"):
        module = instantiate(source, filename)
    module.load_state_dict(dict(state), assign=True)
    device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
    for tensor in graph.declared:
        if tensor.role == "index":  # positions, which stand in the file and not among the weights
            module.register_buffer(tensor.name, torch.tensor(tensor.values, device=device), persistent=False)
    return module
