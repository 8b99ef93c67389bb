"""Run a model's own Python on tensors without memory and write down every call of torch that depends on its input or weights.

Shapes are real numbers, so every branch on a shape takes its course and private functions simply run. Calls that depend on nothing but
constants are executed and give real tensors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

from prunetrain.graph.shapes import layer_shape
from prunetrain.graph.tracing.calls import (
    ABOUT_TENSORS,
    CREATED_LIKE,
    GRADIENT_FREE,
    GRADIENTS,
    HOOKS,
    OF_DATA,
    RANDOM,
    SIZES,
    UNINITIALISED,
    first_in_front,
    in_place,
    short_name,
)
from prunetrain.graph.tracing.journal import Asked, Journal, names_of, outputs_of, tensors_in
from prunetrain.graph.tracing.layers import LeafCall, as_layer, follows_mode, is_layer
from prunetrain.graph.tracing.places import place, place_of_forward
from prunetrain.graph.tracing.preparing import to_be_done
from prunetrain.graph.tracing.randomness import Generators
from prunetrain.graph.tracing.records import Call, Module, Own, Place, Recording
from prunetrain.graph.tracing.registry import Registry
from prunetrain.graph.tracing.shortcuts import empty_like_of_shape, made_without_torch
from prunetrain.graph.windows import shape_text

_COUNTER = "num_batches_tracked"


class Recorder(TorchFunctionMode):
    """While entered, writes down the calls of one forward pass.

    Args:
        model: what is traced.
        registry: its parameters and buffers, and which of them are declared already.
        images: the tensor without memory that it is called with.
        generators: the random numbers that forward may not draw.
        training: the mode it is in.
    """

    def __init__(self, model: nn.Module, registry: Registry, images: Tensor, generators: Generators, *, training: bool) -> None:
        super().__init__()
        self._modules = names_of(model)
        self._training = training
        self._scopes = [""]  # the modules that are running, by qualified name
        self._registry = registry
        self._journal = Journal(registry.tensors, images)
        self._before = self._registered()
        self._generators = generators

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What torch calls in place of every function and method."""
        name = short_name(func)
        args, kwargs = first_in_front(name, args, kwargs or {})
        if name in GRADIENTS and len(args) == 1 and self._journal.is_result(args[0]):
            return self._about_gradients(name, args[0])
        if name in ABOUT_TENSORS:
            self._journal.recording.sized |= name in SIZES
            return func(*args, **kwargs)
        depends = any(map(self._journal.follows, tensors_in((args, kwargs))))
        if not depends and name not in UNINITIALISED and name not in RANDOM:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if name in CREATED_LIKE:
            return _constant_like(func, name, *args, **kwargs)
        if name == "__iter__":
            return iter(self.__torch_function__(Tensor.unbind, types, (*args, 0)))
        counter = self._journal.own(args[0]) if in_place(name) and args else None
        if counter is not None and counter.endswith(_COUNTER):
            return args[0]  # BatchNorm's own business: a layer of the file does it by itself
        asked = Asked(name, args, kwargs, self._place())
        self._refuse(asked)
        return self._record(func, asked)

    def call_module(self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call of any module becomes while tracing: one call if it is a layer, else its own forward, recorded."""
        if module not in self._modules:
            return forward(module, *args, **kwargs)
        name = self._modules[module]
        self._scopes.append(name)
        try:
            if undone := to_be_done(module, name):
                raise self._place().error(undone)
            if not is_layer(module) or self._is_frozen(name, module):
                return self._run(name, module, forward, args, kwargs)
            try:
                leaf = as_layer(module, args, kwargs)
            except ValueError as error:
                raise self._place().error(f"{name or 'the network'} is nothing that a network file can say: {error}") from None
            return self._record_layer(name, module, leaf)
        finally:
            self._scopes.pop()

    def _is_frozen(self, name: str, module: nn.Module) -> bool:
        """Whether a layer is a BatchNorm that stays in eval mode while the model trains: a function that reads its tensors."""
        is_batch_norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        if module.training != self._training and follows_mode(module):
            if is_batch_norm and self._training:
                return True
            stays = "eval mode when the model is trained" if self._training else "train mode when the model is evaluated"
            raise self._place().error(
                f"{name or 'the network'} stays in {stays}, which a network file cannot say of nn.{type(module).__name__}; "
                "let it follow the model's train()"
            )
        if self._training or not is_batch_norm or module.running_mean is None:
            return False
        return self._registry.is_declared(Own(f"{name}.running_mean".lstrip(".")))  # by train mode, which comes first

    def _run(self, name: str, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = forward(module, *args, **kwargs)
        torchs = name and type(module).__module__.startswith("torch.nn.")  # whoever calls it is asked
        if not torchs and self._generators.moved():
            raise place_of_forward(module, name).error(
                f"{name or 'the network'} draws random numbers of Python or numpy, which a network file cannot say; use torch's dropout"
            )
        return result

    def refuse_function(self, function: type, *args: Any, **kwargs: Any) -> Any:
        """What a call of a function with gradients of its own becomes."""
        raise self._place().error(f"{function.__name__} has gradients of its own, which a network file cannot say; use torch's functions")

    def finish(self, output: object) -> Recording:
        """The recording, with what forward returned."""
        self._refuse_replaced()
        nowhere, found = Place("", ""), outputs_of(output)
        if not found:
            raise nowhere.error("forward must return a tensor")
        recording = self._journal.recording
        recording.outputs = tuple(self._journal.stand_in(tensor, nowhere) for tensor in found)
        return recording

    def _registered(self) -> dict[tuple[nn.Module, str], Tensor | None]:
        """What every module has as parameters and buffers now."""
        return {(module, name): own for module in self._modules for name, own in (*module._parameters.items(), *module._buffers.items())}

    def _refuse_replaced(self) -> None:
        """Refuse a forward pass that gave a parameter or buffer another tensor, but for a constant that it keeps there."""
        for (module, attribute), tensor in self._registered().items():
            before, scope = self._before.get((module, attribute)), self._modules[module]
            if tensor is before or attribute == _COUNTER:
                continue
            computed = tensor is not None and self._journal.follows(tensor)
            if computed or is_layer(module) or (before is not None and self._journal.has_read(before)):
                own = f"{scope}.{attribute}".lstrip(".")
                raise place_of_forward(module, scope).error(f"forward changes self.{own}, which a network file cannot say")

    def _place(self) -> Place:
        return place(self._scopes[-1])

    def _refuse(self, asked: Asked) -> None:
        name, own = asked.name, self._journal.own(asked.first)
        if name in OF_DATA:
            raise asked.place.error(f"{OF_DATA[name]} reads numbers of a tensor; a network file takes the same steps for all images")
        if name in HOOKS:
            raise asked.place.error(f"{name} looks at gradients or changes them, which a network file cannot say; train without it")
        if own is not None and in_place(name):
            raise asked.place.error(f"{name} changes self.{own} in place, which a network file cannot say")
        if self._training and name in GRADIENT_FREE and (own is None or asked.args[0].requires_grad):
            raise asked.place.error(f"{name} stops gradients, which a network file cannot say; train without it")
        self._refuse_without_gradients(asked.place)

    def _about_gradients(self, name: str, result: Tensor) -> bool | None:
        """What a result says of its gradients where the model is trained, or evaluated without any; the tensors of a trace do not know."""
        learns = self._training and self._journal.learns(result)
        if name == "grad_fn":
            if learns:
                raise self._place().error("grad_fn reads how a gradient is computed, which a network file cannot say; train without it")
            return None
        return learns == (name == "requires_grad")

    def _refuse_without_gradients(self, here: Place) -> None:
        if self._training and not torch.is_grad_enabled():
            raise here.error("runs without gradients in train mode, which a network file cannot say; train without no_grad()")

    def _record(self, func: Callable[..., Any], asked: Asked) -> Any:
        call = self._journal.prepare(asked)
        first = asked.first
        before = first._version if first is not None else 0
        try:
            result = made_without_torch(asked.name, asked.args, asked.kwargs)
            if result is None:
                result = func(*asked.args, **asked.kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException):
            raise asked.place.error(f"{asked.name} makes a tensor whose shape depends on the numbers in another") from None
        if first is not None and (asked.name == "__setitem__" or first._version != before):
            self._journal.write_change(call, first, asked.args[-1])
        else:
            self._journal.write(call, result, asked)
        return result

    def _record_layer(self, name: str, module: nn.Module, leaf: LeafCall) -> Any:
        """A layer is not run: its shape rule says what it makes."""
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
            learns = any(parameter.requires_grad for parameter in module.parameters())
            self._journal.write(Call("module", (Module(name, leaf.layer), images), {}, (), here), made, learns=learns)
        return (made, None) if leaf.returns_pair else made


def _constant_like(func: Callable[..., Any], name: str, like: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Numbers in the shape or type of a tensor that depends on the images are constants all the same."""
    with unset_fake_temporarily():
        stand_in = torch.empty(tuple(like.shape) if name.endswith("_like") else (0,), dtype=like.dtype, device=like.device)
        return func(stand_in, *args, **kwargs)
