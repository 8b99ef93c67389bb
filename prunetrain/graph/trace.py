"""Turn a torch module into a LayerGraph. This file and the package `tracing` are the only code of `graph` that imports torch.

The model's own Python runs four times on tensors without memory: in train and eval mode, at two batch sizes each. It runs once more, for
a single image, if it asks for sizes. Its calls are recorded and translated into the functions of the catalog. Layers with parameters or
buffers keep their qualified names, with `_` for `.`.
"""

import inspect
import keyword
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import Function
from torch.autograd.variable import VariableMeta

from prunetrain.errors import TraceError
from prunetrain.graph.catalog import FILE_NAMES
from prunetrain.graph.layergraph import GraphError, LayerGraph
from prunetrain.graph.shapes import check_shapes
from prunetrain.graph.tracing.compilation import compilation_disabled
from prunetrain.graph.tracing.merge import merge_modes
from prunetrain.graph.tracing.pairing import check_single_image, pair_recordings
from prunetrain.graph.tracing.places import place_of_error, summary_of_error
from prunetrain.graph.tracing.randomness import preserve_random_state
from prunetrain.graph.tracing.recorder import Recorder
from prunetrain.graph.tracing.records import BATCH_SIZES, PairedRecording, Recording
from prunetrain.graph.tracing.registry import Registry
from prunetrain.graph.tracing.simplify import ModeSteps, names_read_by
from prunetrain.graph.tracing.snapshot import Snapshot
from prunetrain.graph.tracing.steps import steps_from_recording


@dataclass(frozen=True)
class Traced:
    """A graph and the weights of the model it was traced from.

    `state` is the state dict of the generated network, in its order. `names` maps the qualified name of each of the model's parameters and
    buffers in the graph to its name there.
    """

    graph: LayerGraph
    state: dict[str, Tensor]
    names: dict[str, str]


def trace(model: nn.Module, example_input: Tensor) -> LayerGraph:
    """Return the graph of a model.

    Frozen layers, and frozen parameters outside of layers, stay frozen. A layer that is only partly frozen is trained whole.

    Args:
        model: any module whose forward takes one batch of images and runs the same steps for all of them.
        example_input: a batch, shape (N, C, H, W); only its shape is used.

    Raises:
        TraceError: if the model does something that a network file cannot express; the message names the line of the model.
    """
    return trace_with_state(model, example_input).graph


def trace_with_state(model: nn.Module, example_input: Tensor) -> Traced:
    """Trace a model, and return the state dict under the graph's names as well. Tensors are shared with the model, not copied.

    Raises:
        TraceError: as `trace` does.
    """
    if not isinstance(example_input, Tensor):
        raise TraceError(f"the example input must be a batch of images, such as torch.randn(1, 3, 224, 224), not {example_input!r}")
    _check_signature(model)
    modules = dict(model.named_modules())
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    registry = Registry(tensors, {name: position for position, name in enumerate(modules)})
    shape, snapshot = tuple(example_input.shape[1:]), Snapshot(model)

    def steps(*, training: bool) -> ModeSteps:
        first, second = (_record(model, snapshot, registry, (batch, *shape), training) for batch in BATCH_SIZES)
        traced = pair_recordings(first, second, training=training)
        if first.reads_sizes and not training:
            _check_one_image(model, snapshot, registry, shape, traced)
        return steps_from_recording(traced, registry, modules)

    in_training, in_evaluation = steps(training=True), steps(training=False)
    both = merge_modes(in_training, in_evaluation)
    used = names_read_by(both.steps)
    layers, declared = registry.layers(used), tuple(tensor for name, tensor in registry.declared.items() if name in used)
    name = _class_name(type(model).__name__)
    try:
        graph = LayerGraph(name, shape, layers, both.steps, both.outputs[0], declared, both.outputs[1:], both.auxiliary)
        check_shapes(graph)
    except GraphError as error:
        raise TraceError(f"{name} cannot be written as a network file: {error}") from None
    state = registry.state(graph.layers, graph.declared)
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    names = {name: registry.names.get(first[id(tensor)], "") for name, tensor in tensors.items()}
    names = {name: flat for name, flat in names.items() if flat in state}
    for name in names:
        if tensors[name]._backward_hooks or tensors[name]._post_accumulate_grad_hooks:
            raise TraceError(f"{name} has a hook on its gradient, which a network file cannot express: remove it")
    return Traced(graph, state, names)


def _check_signature(model: nn.Module) -> None:
    parameters = inspect.signature(model.forward).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1:
        raise TraceError(
            f"{type(model).__name__}.forward requires {len(needed)} arguments, but gets one batch of images: give the others default values"
        )


def _record(model: nn.Module, snapshot: Snapshot, registry: Registry, shape: tuple[int, ...], training: bool) -> Recording:
    """Record what the model calls in train or eval mode for a batch of this shape. The model stays as it is."""
    sample = next((tensor for tensor in registry.tensors.values() if tensor.is_floating_point()), torch.empty(0))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with (
        preserve_random_state() as random_states,
        snapshot.in_mode(training=training),
        compilation_disabled(),
        _quiet(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        with fake:
            images = torch.empty(shape, dtype=sample.dtype, device=sample.device)
        recorder = Recorder(model, registry, images, random_states, training=training)
        return _run_forward(model, recorder, fake, images)


def _check_one_image(model: nn.Module, snapshot: Snapshot, registry: Registry, shape: tuple[int, ...], several: PairedRecording) -> None:
    """Refuse a model that runs other steps for one image. A model that fails on one image, as after a squeeze(), is accepted."""
    try:
        alone = _record(model, snapshot, registry, (1, *shape), training=False)
    except TraceError:
        return
    check_single_image(several, alone)


def _run_forward(model: nn.Module, recorder: Recorder, fake: FakeTensorMode, images: Tensor) -> Recording:
    call, apply = nn.Module.__call__, Function.__dict__["apply"]

    def recorded(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return recorder.call_module(module, call, args, kwargs)

    def followed(function: type[Function], *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            bound = inspect.signature(function.forward).bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        return recorder.call_function(function, apply.__get__(None, function), args)

    try:
        nn.Module.__call__ = recorded  # type: ignore[method-assign]
        Function.apply = classmethod(followed)
        VariableMeta.__call__ = recorder.make_variable  # type: ignore[method-assign, assignment]
        with fake, recorder:
            output = model(images)
        return recorder.finish(output)
    except TraceError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise place_of_error(error).error(f"{type(model).__name__} cannot be traced: {summary_of_error(error)}") from error
    finally:
        nn.Module.__call__ = call  # type: ignore[method-assign]
        Function.apply = apply
        del VariableMeta.__call__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of the model's code, which runs several times here, and tracebacks that torch logs for errors reported anyway."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _class_name(name: str) -> str:
    """Return a name for the file's class that Python and the file allow."""
    legal = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_")
    if not legal or not legal[0].isalpha() or keyword.iskeyword(legal) or legal in FILE_NAMES:
        return f"Network{legal}"
    return legal
