"""Run a model's own Python on tensors without memory and record every call of torch that depends on its input or weights.

Shapes are real numbers, so branches on shapes work as usual and private functions simply run. Calls that depend on nothing but constants
are executed and return real tensors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor, unset_fake_temporarily
from torch.autograd import Function
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from prunetrain.errors import TraceError
from prunetrain.graph.shapes import layer_shape
from prunetrain.graph.tracing.calls import (
    CREATED_LIKE,
    DATA_DEPENDENT,
    DETACHING_CALLS,
    GRADIENT_QUERIES,
    HOOKS,
    METADATA_CALLS,
    RANDOM,
    SIZE_CALLS,
    UNINITIALISED,
    canonical_arguments,
    is_in_place,
    short_name,
)
from prunetrain.graph.tracing.custom_functions import has_gradient_of_forward, run_forward
from prunetrain.graph.tracing.journal import Journal, RawCall, module_names, outputs_of, tensors_in
from prunetrain.graph.tracing.layers import LayerCall, depends_on_mode, is_layer, layer_call_of
from prunetrain.graph.tracing.places import place, place_of_forward, summary_of_error
from prunetrain.graph.tracing.preconditions import unmet_precondition
from prunetrain.graph.tracing.randomness import RandomStates
from prunetrain.graph.tracing.records import Call, CalledLayer, ModelTensor, Place, Recording
from prunetrain.graph.tracing.registry import Registry
from prunetrain.graph.tracing.shortcuts import empty_like_of_shape, result_without_torch
from prunetrain.graph.windows import shape_text

_COUNTER = "num_batches_tracked"


class Recorder(TorchFunctionMode):
    """Records the calls of one forward pass while entered.

    Args:
        model: the model that is traced.
        registry: its parameters and buffers, and which of them are declared already.
        images: the tensor without memory that it is called with.
        random_states: Python's and numpy's random generators, from which forward must not draw.
        training: whether the model is in train mode.
    """

    def __init__(self, model: nn.Module, registry: Registry, images: Tensor, random_states: RandomStates, *, training: bool) -> None:
        super().__init__()
        self._modules = module_names(model)
        self._training = training
        self._scopes = [""]  # the modules that are running, by qualified name
        self._registry = registry
        self._journal = Journal(registry.tensors, images)
        self._before = self._parameters_and_buffers()
        self._random_states = random_states
        self._compares = False  # whether a function runs on random tensors, which are not recorded

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Handle a call: torch calls this in place of every function and method."""
        name = short_name(func)
        args, kwargs = canonical_arguments(name, args, kwargs or {})
        if name == "__getitem__":
            args = (args[0], self._with_whole_numbers(args[1]))
        if name in GRADIENT_QUERIES and len(args) == 1 and self._journal.is_result(args[0]):
            return self._answer_gradient_query(name, args[0])
        if name in METADATA_CALLS:
            self._journal.recording.reads_sizes |= name in SIZE_CALLS
            return func(*args, **kwargs)
        depends = any(map(self._journal.is_traced, tensors_in((args, kwargs))))
        if not depends and name not in UNINITIALISED and name not in RANDOM:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if name in CREATED_LIKE:
            return _constant_like(func, name, *args, **kwargs)
        if name == "__iter__":
            return iter(self.__torch_function__(Tensor.unbind, types, (*args, 0)))
        counter = self._journal.qualified_name(args[0]) if is_in_place(name) and args else None
        if counter is not None and counter.endswith(_COUNTER):
            return args[0]  # BatchNorm counts its batches, and so does the layer in the file
        raw_call = RawCall(name, args, kwargs, self._place())
        self._refuse_unsupported(raw_call)
        return self._record(func, raw_call)

    def _with_whole_numbers(self, index: Any) -> Any:
        """Return an index with whole numbers for constant tensors of one number, which not every torch can read while tracing."""
        if isinstance(index, tuple):
            return tuple(map(self._with_whole_numbers, index))
        is_number = isinstance(index, Tensor) and index.dim() == 0 and index.dtype == torch.int64 and not self._journal.is_traced(index)
        if not is_number or isinstance(index, FakeTensor) or index.is_meta:
            return index
        with unset_fake_temporarily():
            return int(index)

    def call_module(self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Handle a call of a module: record a layer as one call, and run and record the forward of any other module."""
        if module not in self._modules or self._compares:
            return forward(module, *args, **kwargs)
        name = self._modules[module]
        self._scopes.append(name)
        try:
            if undone := unmet_precondition(module, name):
                raise self._place().error(undone)
            if not is_layer(module) or self._is_frozen(name, module):
                return self._run(name, module, forward, args, kwargs)
            try:
                leaf = layer_call_of(module, args, kwargs)
            except ValueError as error:
                raise self._place().error(f"{name or 'the network'} cannot be written to a network file: {error}") from None
            return self._record_layer(name, module, leaf)
        finally:
            self._scopes.pop()

    def _is_frozen(self, name: str, module: nn.Module) -> bool:
        """Whether a layer is a BatchNorm that stays in eval mode while the model trains; it becomes a function that reads its tensors."""
        is_batch_norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        if module.training != self._training and depends_on_mode(module):
            if is_batch_norm and self._training:
                return True
            stays = "eval mode when the model is trained" if self._training else "train mode when the model is evaluated"
            raise self._place().error(
                f"{name or 'the network'} stays in {stays}, which a network file cannot express for nn.{type(module).__name__}: "
                "let it follow the model's train()"
            )
        if self._training or not is_batch_norm or module.running_mean is None:
            return False
        return self._registry.is_declared(ModelTensor(f"{name}.running_mean".lstrip(".")))  # in train mode, which is traced first

    def _run(self, name: str, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = forward(module, *args, **kwargs)
        torchs = name and type(module).__module__.startswith("torch.nn.")  # the module that calls it is checked instead
        if not torchs and self._random_states.has_changed():
            raise place_of_forward(module, name).error(
                f"{name or 'the network'} draws random numbers from Python or numpy, which a network file cannot express: "
                "use torch's dropout"
            )
        return result

    def call_function(self, function: type[Function], apply: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Handle a call of a function that defines its own gradient: follow its forward pass if the gradient is that of this pass.

        Args:
            function: the function.
            apply: calls it as torch does.
            args: its arguments.
        """
        if function is CheckpointFunction:
            part, _, *inputs = args
            return part(*inputs)
        torchs = function.__module__ == CheckpointFunction.__module__  # torch.utils.checkpoint has a function that keeps inputs
        if self._training and not self._compares and not torchs:
            self._compare_gradients(function, apply, args)
        return run_forward(function, args)

    def _compare_gradients(self, function: type[Function], apply: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._compares = True
        try:
            agree = has_gradient_of_forward(function, apply, args, lambda tensor: self._journal.qualified_name(tensor) is not None)
        except Exception as error:  # whatever the function's own code raises
            raise self._place().error(
                f"{function.__name__} defines its own gradient, which cannot be compared with that of its forward pass: "
                f"{summary_of_error(error)}"
            ) from error
        finally:
            self._compares = False
        if not agree:
            raise self._place().error(
                f"{function.__name__} defines a gradient that is not that of its forward pass, which a network file cannot express: "
                "use torch's functions"
            )

    def make_variable(self, data: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Handle `torch.autograd.Variable(x)`, which old models still call: the same numbers without gradients."""
        has_gradient = self._journal.requires_gradient(data) if self._journal.is_result(data) else data.requires_grad
        return data.detach() if has_gradient else data

    def finish(self, output: object) -> Recording:
        """Return the recording, with what forward returned."""
        self._refuse_replaced()
        nowhere, found = Place("", ""), outputs_of(output)
        if not found:
            raise nowhere.error("forward must return a tensor")
        recording = self._journal.recording
        recording.outputs = tuple(self._journal.stand_in(tensor, nowhere) for tensor in found)
        return recording

    def _parameters_and_buffers(self) -> dict[tuple[nn.Module, str], Tensor | None]:
        """Return the current parameters and buffers of every module."""
        return {(module, name): own for module in self._modules for name, own in (*module._parameters.items(), *module._buffers.items())}

    def _refuse_replaced(self) -> None:
        """Refuse a forward pass that replaced a parameter or buffer, unless by a constant that it caches there."""
        for (module, attribute), tensor in self._parameters_and_buffers().items():
            before, scope = self._before.get((module, attribute)), self._modules[module]
            if tensor is before or attribute == _COUNTER:
                continue
            computed = tensor is not None and self._journal.is_traced(tensor)
            if computed or is_layer(module) or (before is not None and self._journal.has_read(before)):
                own = f"{scope}.{attribute}".lstrip(".")
                raise place_of_forward(module, scope).error(
                    f"forward changes self.{own}, which a network file cannot express: keep parameters and buffers as they are"
                )

    def _place(self) -> Place:
        return place(self._scopes[-1])

    def _refuse_unsupported(self, raw_call: RawCall) -> None:
        name, own = raw_call.name, self._journal.qualified_name(raw_call.first)
        if name in DATA_DEPENDENT:
            raise raw_call.place.error(
                f"{DATA_DEPENDENT[name]} reads the values of a tensor, but a network file runs the same steps for all images: "
                "use tensor operations"
            )
        if name in HOOKS:
            raise raw_call.place.error(f"{name} reads or changes gradients, which a network file cannot express: remove it")
        if own is not None and is_in_place(name):
            raise raw_call.place.error(f"{name} changes self.{own} in place, which a network file cannot express: compute a new tensor")
        self._refuse_without_gradients(raw_call.place)

    def _refuse_detaching(self, raw_call: RawCall) -> TraceError | None:
        """Refuse a call that stops gradients. If its result may serve for no more than its size, return the refusal for any other use."""
        own = self._journal.qualified_name(raw_call.first)
        if not self._training or raw_call.name not in DETACHING_CALLS or not (own is None or raw_call.args[0].requires_grad):
            return None
        refusal = raw_call.place.error(f"{raw_call.name} stops gradients, which a network file cannot express: remove it")
        if len(raw_call.args) > 1 or is_in_place(raw_call.name):
            raise refusal
        return refusal

    def _answer_gradient_query(self, name: str, result: Tensor) -> bool | None:
        """Answer as a real result would in training, or in evaluation without gradients; tensors without memory do not know."""
        requires_gradient = self._training and self._journal.requires_gradient(result)
        if name == "grad_fn":
            if requires_gradient:
                raise self._place().error("grad_fn reads how a gradient is computed, which a network file cannot express: remove it")
            return None
        return requires_gradient == (name == "requires_grad")

    def _refuse_without_gradients(self, here: Place) -> None:
        if self._training and not torch.is_grad_enabled():
            raise here.error(
                "runs without gradients in train mode, which a network file cannot express: remove no_grad() or inference_mode(); "
                "call a function that defines its own gradient as NAME.apply(...), not by another name"
            )

    def _record(self, func: Callable[..., Any], raw_call: RawCall) -> Any:
        refusal = self._refuse_detaching(raw_call)
        call = self._journal.prepare(raw_call)
        first = raw_call.first
        before = first._version if first is not None else 0
        try:
            result = result_without_torch(raw_call.name, raw_call.args, raw_call.kwargs)
            if result is None:
                result = func(*raw_call.args, **raw_call.kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException):
            raise raw_call.place.error(
                f"{raw_call.name} makes a tensor whose shape depends on the values of another: use fixed shapes"
            ) from None
        if refusal is not None:
            self._journal.refuse_use(result, refusal)
        elif first is not None and (raw_call.name == "__setitem__" or first._version != before):
            self._journal.write_change(call, first, raw_call.args[-1])
        else:
            self._journal.write(call, result, raw_call)
        return result

    def _record_layer(self, name: str, module: nn.Module, leaf: LayerCall) -> Any:
        """Record a layer without running it: its shape rule gives the shape of its output."""
        with torch._C.DisableTorchFunction():
            here = self._place()
            self._refuse_without_gradients(here)
            try:
                shape = layer_shape(leaf.layer, tuple(leaf.images.shape))
                if min(shape) < 1:
                    raise ValueError(f"nothing is left of the image: {shape_text(tuple(leaf.images.shape))} becomes {shape_text(shape)}")
            except ValueError as error:
                raise here.error(f"{name or 'the network'} does not fit its input: {error}") from None
            made = empty_like_of_shape(leaf.images, shape)
            images = self._journal.stand_in(leaf.images, here)
            requires_gradient = any(parameter.requires_grad for parameter in module.parameters())
            self._journal.write(
                Call("module", (CalledLayer(name, leaf.layer), images), {}, (), here), made, requires_gradient=requires_gradient
            )
        return (made, None) if leaf.returns_pair else made


def _constant_like(func: Callable[..., Any], name: str, like: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Make a constant in the shape or type of a tensor that depends on the images."""
    with unset_fake_temporarily():
        stand_in = torch.empty(tuple(like.shape) if name.endswith("_like") else (0,), dtype=like.dtype, device=like.device)
        return func(stand_in, *args, **kwargs)
