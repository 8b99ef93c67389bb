"""Tracing that is checked: the network of the file and the model that it was traced from say the same of images.

In: a model, an image shape. Out: what `trace_with_state` gives, or a `TraceError`. What a model does behind torch's back, such as code of
its own in the place of a layer's, is noticed here at the latest.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from prunetrain.errors import TraceError
from prunetrain.graph.memory import check_results_fit
from prunetrain.graph.render import render
from prunetrain.graph.trace import Traced, trace_with_state
from prunetrain.graph.tracing.journal import outputs_of
from prunetrain.graph.tracing.places import place_of, reason_of
from prunetrain.graph.tracing.snapshot import Snapshot
from prunetrain.models.assembling import assemble

_IMAGES = 2  # a network that squeezes all dimensions of one loses the batch with a single image


def traced_and_checked(model: nn.Module, example_input: Tensor, *, returns_alike: bool = False) -> Traced:
    """`trace_with_state`, and two random images through both networks in eval mode.

    Args:
        model: as for `trace`, with weights.
        example_input: a batch, shape (N, C, H, W); only its shape counts.
        returns_alike: whether the file's network must return what the model does as well: a tensor, or a tuple of several.

    Raises:
        NetworkFileError: if images do not fit into this machine's memory.
        TraceError: as `trace`; and if the outputs differ by more than rounding, or the file's network cannot take the model's weights.
    """
    traced = trace_with_state(model, example_input)
    name = traced.graph.class_name
    sample = next((tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()), torch.empty(0))
    if sample.device.type == "cpu":
        check_results_fit(traced.graph, name, _IMAGES)
    images = torch.randn(_IMAGES, *example_input.shape[1:], generator=torch.Generator().manual_seed(0)).to(sample)
    try:
        network = assemble(render(traced.graph), name, traced.graph, traced.state).eval()
    except RuntimeError as error:
        raise TraceError(f"{name} has other weights than the layers that it is made of: {str(error).splitlines()[-1].strip()}") from None
    try:
        with torch.no_grad(), Snapshot(model).in_mode(training=False):
            found, returned = outputs_of(network(images.clone())), model(images.clone())
    except Exception as error:  # whatever the model's own code raises, and too little memory
        raise place_of(error).error(f"{name} fails with {_IMAGES} random images: {reason_of(error)}") from error
    if returns_alike and not _is_plain(returned):
        raise TraceError(
            f"{name} returns a {type(returned).__name__} that is neither a tensor nor a tuple of several, as the networks of files do: "
            "what uses it would get something else after a cut, so let forward return these"
        )
    if not _alike(outputs_of(returned), found):
        raise TraceError(
            f"{name} computes something else than its network file would: it has code that prunetrain did not see, "
            "such as a method that was replaced; let its modules do all that changes numbers"
        )
    return traced


def stored(traced: Traced) -> Traced:
    """The same, every tensor in memory of its own, as files want them."""
    return replace(traced, state={name: _own(tensor) for name, tensor in traced.state.items()})


def _own(tensor: Tensor) -> Tensor:
    whole = tensor.contiguous()
    return whole if whole.untyped_storage().nbytes() == whole.numel() * whole.element_size() else whole.clone()


def _is_plain(returned: object) -> bool:
    several = isinstance(returned, tuple | list) and len(returned) > 1 and all(isinstance(item, Tensor) for item in returned)
    return isinstance(returned, Tensor) or several


def _alike(wanted: list[Tensor], found: list[Tensor]) -> bool:
    """Whether outputs are the same but for rounding, by the largest number of each; what is no number is so in both."""
    return len(wanted) == len(found) and all(map(_close, wanted, found))


def _close(wanted: Tensor, found: Tensor) -> bool:
    if wanted.shape != found.shape:
        return False
    finite = wanted.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return False
    largest = float(wanted[finite].abs().max()) if bool(finite.any()) else 0.0
    tolerance = float(torch.finfo(wanted.dtype).eps ** 0.5) * largest
    return bool(((wanted - found)[finite].abs() <= tolerance).all())
