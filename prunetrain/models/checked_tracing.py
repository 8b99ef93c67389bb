"""Trace a model and check that the network of the file computes the same.

In: a model, an image shape. Out: the result of `trace_with_state`, or a `TraceError`. Whatever a model does that tracing cannot see, such
as its own code in place of a layer's, is noticed here at the latest.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunetrain.errors import TraceError
from prunetrain.graph.memory import check_results_fit
from prunetrain.graph.render import render
from prunetrain.graph.trace import Traced, trace_with_state
from prunetrain.graph.tracing.compilation import compilation_disabled
from prunetrain.graph.tracing.journal import outputs_of
from prunetrain.graph.tracing.places import place_of_error, summary_of_error
from prunetrain.graph.tracing.randomness import preserve_random_state
from prunetrain.graph.tracing.snapshot import Snapshot
from prunetrain.models.assembling import assemble

_IMAGES = 2  # a network that squeezes all dimensions of size 1 would lose a batch of one
_TRAIN_MODE_TOLERANCE = 0.01  # tolerance of outputs in train mode: BatchNorm over two values amplifies their last bits
_TOO_FEW_VALUES = "Expected more than 1 "  # "value per channel when training", says torch's normalisation


def trace_and_check(model: nn.Module, example_input: Tensor, *, same_return_type: bool = False) -> Traced:
    """Run `trace_with_state`, then two random images through both networks, in eval mode and in train mode.

    In train mode, running statistics and outputs are compared; if the model draws random numbers or computes on a GPU, only which buffers
    change. The model, its buffers and torch's random state stay as they are.

    Args:
        model: as for `trace`, with weights.
        example_input: a batch, shape (N, C, H, W); only its shape matters.
        same_return_type: whether the model must return the same kind of value as the file's network: a tensor, or a tuple of several.

    Raises:
        NetworkFileError: if the results for these images do not fit into this machine's memory.
        TraceError: as for `trace`; and if results differ by more than rounding, or the model's weights do not fit the file's network.
    """
    traced = trace_with_state(model, example_input)
    name = traced.graph.class_name
    sample = next((tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()), torch.empty(0))
    if sample.is_meta:
        raise TraceError(f"{name} has no weights, only their shapes (device meta): load them first")
    if sample.device.type == "cpu":
        check_results_fit(traced.graph, name, _IMAGES)
    images = torch.randn(_IMAGES, *example_input.shape[1:], generator=torch.Generator().manual_seed(0)).to(sample)
    try:
        network = assemble(render(traced.graph), name, traced.graph, traced.state).eval()
    except RuntimeError as error:
        raise TraceError(f"{name} has weights that do not fit its own layers: {str(error).splitlines()[-1].strip()}") from None
    try:
        with torch.no_grad(), Snapshot(model).in_mode(training=False):
            found, (returned, _) = outputs_of(_run_seeded(network, images)[0]), _run_seeded(model, images)
    except Exception as error:  # whatever the model's own code raises, and out of memory
        raise place_of_error(error).error(f"{name} fails with {_IMAGES} random images: {summary_of_error(error)}") from error
    if same_return_type and not _is_tensor_output(returned):
        raise TraceError(
            f"{name} returns a {type(returned).__name__} that is neither a tensor nor a tuple of several tensors: network files return "
            "nothing else, so your code would get another type after a cut; let forward return one of them"
        )
    if not _outputs_match(outputs_of(returned), found):
        raise _difference(name, "computes different results")
    try:
        difference = _difference_in_training(model, network, traced.names, images)
    except Exception as error:  # as above
        raise place_of_error(error).error(f"{name} fails with {_IMAGES} random images in train mode: {summary_of_error(error)}") from error
    if difference:
        raise _difference(name, difference)
    return traced


def _difference(name: str, what: str) -> TraceError:
    return TraceError(
        f"{name} {what} than its network file: it has code that prunetrain did not see, "
        "such as a replaced method; let its modules do all computation"
    )


def _run_seeded(module: nn.Module, images: Tensor) -> tuple[object, bool]:
    """Return a module's result for images under a fixed seed, and whether it drew random numbers; torch's own state stays."""
    with torch.random.fork_rng([images.device] if images.is_cuda else []), preserve_random_state(), compilation_disabled():
        torch.default_generator.manual_seed(0)
        if images.is_cuda:
            torch.cuda.default_generators[images.device.index].manual_seed(0)
        seeded = _generators_of(images)
        returned = module(images.clone())
        drew = not all(map(torch.equal, seeded, _generators_of(images)))
    return returned, drew


def _generators_of(images: Tensor) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(images.device)] if images.is_cuda else [])]


def _difference_in_training(model: nn.Module, network: nn.Module, names: Mapping[str, str], images: Tensor) -> str:
    """Describe what the model does differently from the file's network in train mode; "" if nothing.

    If two images give a layer too few values for its statistics, nothing can be compared. The file's network may draw other random numbers
    than the model, from the same distribution.
    """
    for module in network.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()  # they were shared with the model
    buffers = {name for name, tensor in model.named_buffers(remove_duplicate=False) if tensor.is_floating_point()}
    inside = network.state_dict()
    before = {flat: inside[flat].clone() for name, flat in names.items() if name in buffers}
    try:
        with torch.enable_grad(), Snapshot(model, buffers=True).in_mode(training=True):
            returned, draws = _run_seeded(model, images)
            wanted = [tensor.detach() for tensor in outputs_of(returned)]
            del returned  # frees its autograd graph
            own = dict(model.named_buffers(remove_duplicate=False))
            wanted_buffers = {flat: own[name].clone() for name, flat in names.items() if name in own and own[name].is_floating_point()}
        with torch.enable_grad():
            found = [tensor.detach() for tensor in outputs_of(_run_seeded(network.train(), images)[0])]
    except ValueError as error:
        if _TOO_FEW_VALUES in str(error):
            return ""
        raise
    inside = network.state_dict()
    found_buffers = {name: inside[name] for name in wanted_buffers}
    exact = not draws and images.device.type == "cpu"
    alike = _changed_layers(wanted_buffers, before) == _changed_layers(found_buffers, before)
    if not alike or (exact and not _statistics_match(wanted_buffers, found_buffers)):
        return "has different buffers after a batch in train mode"
    return "computes different results in train mode" if exact and not _outputs_match(wanted, found, _TRAIN_MODE_TOLERANCE) else ""


def _changed_layers(tensors: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> set[str]:
    """The layers with a tensor that changed. Layers are compared, since a batch of zeros changes the variance but not the mean."""
    return {name.rpartition(".")[0] for name, tensor in tensors.items() if not torch.equal(tensor, before[name])}


def with_own_storage(traced: Traced) -> Traced:
    """Return the same with every tensor in memory of its own, and in torch's default type if it has fractions, as files need."""
    return replace(traced, state={name: _own(tensor) for name, tensor in traced.state.items()})


def _own(tensor: Tensor) -> Tensor:
    whole = (tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor).contiguous()
    return whole if whole.untyped_storage().nbytes() == whole.numel() * whole.element_size() else whole.clone()


def _is_tensor_output(returned: object) -> bool:
    several = isinstance(returned, tuple | list) and len(returned) > 1 and all(isinstance(item, Tensor) for item in returned)
    return isinstance(returned, Tensor) or several


def _outputs_match(wanted: list[Tensor], found: list[Tensor], share: float = 0.0) -> bool:
    """Whether outputs are equal up to rounding, or a share of each one's largest number, with NaN and infinities at the same places."""
    return len(wanted) == len(found) and all(_close(one, other, _largest(one), share) for one, other in zip(wanted, found, strict=True))


def _statistics_match(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    """Whether running statistics are equal up to rounding, relative to the largest number in each layer, since a mean may be close to 0."""
    largest: dict[str, float] = {}
    for name, tensor in wanted.items():
        layer = name.rpartition(".")[0]
        largest[layer] = max(largest.get(layer, 0.0), _largest(tensor))
    return all(_close(tensor, found[name], largest[name.rpartition(".")[0]]) for name, tensor in wanted.items())


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _close(wanted: Tensor, found: Tensor, largest: float, share: float = 0.0) -> bool:
    if wanted.shape != found.shape:
        return False
    finite = wanted.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return False
    tolerance = max(float(torch.finfo(wanted.dtype).eps ** 0.5), share) * largest
    return bool(((wanted - found)[finite].abs() <= tolerance).all())
