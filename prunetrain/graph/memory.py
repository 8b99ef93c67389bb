"""How much memory a network needs, from its graph alone, so that one that does not fit is refused before it is built. No torch."""

from math import prod
from typing import Final

from prunetrain.errors import NetworkFileError
from prunetrain.foreign.memory import available_memory, format_bytes
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.shapes import infer_shapes

_DTYPE_BYTES: Final = {"float32": 4, "int64": 8, "bool": 1}
_FLOAT32_BYTES: Final = 4  # bytes of a float32
_STATISTICS: Final = ("BatchNorm1d", "BatchNorm2d", "InstanceNorm2d")


def state_bytes(graph: LayerGraph) -> int:
    """Return the size of a network's parameters and buffers in bytes."""
    declared = sum(prod(tensor.shape) * _DTYPE_BYTES[tensor.dtype] for tensor in graph.declared if tensor.role != "parameter")
    statistics = sum(
        2 * layer["num_features"] * _FLOAT32_BYTES + 8
        for layer in graph.layers
        if layer.kind in _STATISTICS and layer["track_running_stats"]
    )
    return costs(graph).params * _FLOAT32_BYTES + declared + int(statistics)


def check_state_fits(graph: LayerGraph, filename: str) -> None:
    """Check that a network's parameters and buffers are no larger than the free memory.

    Raises:
        NetworkFileError: if they are larger.
    """
    if (needed := state_bytes(graph)) > (available := available_memory()):
        raise NetworkFileError(f"{filename}: its weights take {format_bytes(needed)}, and {format_bytes(available)} of memory are free")


def check_results_fit(graph: LayerGraph, filename: str, images: int) -> None:
    """Check that no single result of a network is larger than the free memory.

    Args:
        graph: the network.
        filename: the file's name in the error message.
        images: the batch size.

    Raises:
        NetworkFileError: if one is larger.
    """
    needed = max(prod(shape) for shape in infer_shapes(graph, images)) * _FLOAT32_BYTES
    if needed > (available := available_memory()):
        where = f"for a batch of {images:,} images" if images > 1 else "for one image"
        raise NetworkFileError(
            f"{filename}: a layer's results take {format_bytes(needed)} {where}, and {format_bytes(available)} of memory are free"
        )
