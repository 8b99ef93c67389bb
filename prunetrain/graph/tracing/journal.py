"""The record of a model's run: stand-ins for tensors, calls, and the results that tensor objects stand for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from prunetrain.errors import TraceError
from prunetrain.graph.tracing.aliasing import AliasTracker
from prunetrain.graph.tracing.calls import CONVERSIONS, WITHOUT_GRADIENTS, to_plain_python
from prunetrain.graph.tracing.records import Call, Constant, ModelTensor, Place, Recording, Ref

_MAIN_OUTPUT_NAMES = ("logits", "out")  # names that models give to the main one of several outputs


def tensors_in(value: object) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def outputs_of(output: object) -> list[Tensor]:
    """Return the tensors in the output of a forward pass, the main one first.

    In dicts and dataclasses the main one is `logits` or `out`, if there is one. The others keep their order; None is left out.
    """
    if not isinstance(output, Tensor | tuple | list | Mapping) and hasattr(output, "__dict__"):
        output = vars(output)
    if isinstance(output, Mapping):
        output = dict(sorted(output.items(), key=lambda item: item[0] not in _MAIN_OUTPUT_NAMES))
    return tensors_in(output)


@dataclass(frozen=True)
class RawCall:
    """A call as the model makes it, before tensors have stand-ins."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: Place

    @property
    def first(self) -> Tensor | None:
        """The tensor that a method is called on."""
        return self.args[0] if self.args and isinstance(self.args[0], Tensor) else None


class Journal:
    """The recording of one forward pass.

    Args:
        tensors: the model's parameters and buffers by qualified name.
        images: the tensor that the model is called with.
    """

    def __init__(self, tensors: Mapping[str, Tensor], images: Tensor) -> None:
        self._names = {id(tensor): name for name, tensor in reversed(list(tensors.items()))}  # the first of several names
        self._dtype = images.dtype
        self._read: set[str] = set()
        self._tensors = tensors
        self._with_gradients: set[Ref] = set()
        self._aliases = AliasTracker()
        self._refused: dict[int, TraceError] = {}
        self.recording = Recording([tuple(images.shape)])
        self._aliases.bind(images, Ref(0))

    def is_traced(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the images, a parameter or a buffer."""
        return id(tensor) in self._names or self._aliases.knows(tensor)

    def has_read(self, tensor: Tensor) -> bool:
        """Whether a call read one of the model's tensors."""
        return self.qualified_name(tensor) in self._read

    def is_result(self, tensor: object) -> bool:
        """Whether something is a result of the forward pass, or its input."""
        return isinstance(tensor, Tensor) and self.qualified_name(tensor) is None and self._aliases.knows(tensor)

    def requires_gradient(self, tensor: Tensor) -> bool:
        """Whether a result requires gradients in training, because it comes from a parameter that does."""
        return self._aliases.ref(tensor) in self._with_gradients

    def qualified_name(self, tensor: object) -> str | None:
        """The qualified name of one of the model's tensors; None for any other."""
        return self._names.get(id(tensor))

    def stand_in(self, value: Any, place: Place) -> Any:
        """Return arguments with a stand-in for every tensor.

        Raises:
            TraceError: for a tensor whose memory was changed since, or whose origin is unknown.
        """
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if isinstance(value, Mapping):
            return {key: self.stand_in(item, place) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return tuple(self.stand_in(item, place) for item in value)
        return to_plain_python(value)

    def _tensor(self, tensor: Tensor, place: Place) -> Ref | ModelTensor | Constant:
        name = self.qualified_name(tensor)
        if name is not None:
            self._read.add(name)
            return ModelTensor(name)
        if self._aliases.knows(tensor):
            ref = self._aliases.read(tensor, place)
            if ref.index in self._refused:
                raise self._refused[ref.index]
            return ref
        if isinstance(tensor, FakeTensor):
            raise place.error(
                "a tensor comes from a call that prunetrain did not see, such as a scripted function or torch.FloatTensor(...): "
                "call the Python function, or torch.zeros(...) and the like, instead"
            )
        with torch._C.DisableTorchFunction(), unset_fake_temporarily():
            return Constant(tensor.detach().clone())

    def prepare(self, raw_call: RawCall) -> Call:
        """Return a call with stand-ins and no results yet. Must come before the call runs, which may change what it reads."""
        args = raw_call.args
        if raw_call.name in ("__getitem__", "__setitem__") and isinstance(args[1], list):
            args = (args[0], (args[1],), *args[2:])  # x[[0, 2]] takes two positions of one dimension, x[0, 2] one of each
        return Call(raw_call.name, self.stand_in(args, raw_call.place), self.stand_in(raw_call.kwargs, raw_call.place), (), raw_call.place)

    def write(self, call: Call, result: object, raw_call: RawCall | None = None, *, requires_gradient: bool = False) -> None:
        """Record a call that made new tensors, and ignore one that returns a size, a flag, or the very tensor that it read.

        Args:
            call: the call.
            result: what it returned.
            raw_call: the call as the model made it; None for a layer.
            requires_gradient: whether the call has parameters of its own that require gradients.
        """
        made = tensors_in(result)
        read = {id(tensor) for tensor in tensors_in((raw_call.args, raw_call.kwargs))} if raw_call else set()
        if not made or all(id(tensor) in read for tensor in made):
            return
        refs = tuple(self._new(tuple(tensor.shape)) for tensor in made)
        self._append(call, *refs)
        for tensor, ref in zip(made, refs, strict=True):
            self._check_type(tensor, call, raw_call)
            if tensor.dtype == torch.int64:
                self.recording.integers.add(ref.index)
            if tensor.is_floating_point() and (requires_gradient or self._passes_gradients(call)):
                self._with_gradients.add(ref)
            self._aliases.bind(tensor, ref)
        whole = raw_call.first if raw_call else None
        if call.name == "__getitem__" and whole is not None:
            self._aliases.bind_part(made[0], whole, call.arguments[1])

    def refuse_use(self, tensor: Tensor, refusal: TraceError) -> None:
        """Let a new tensor be asked for its size and the like, but refuse every call that reads it."""
        ref = self._new(tuple(tensor.shape))
        self._refused[ref.index] = refusal
        self._aliases.bind(tensor, ref)

    def write_change(self, call: Call, tensor: Tensor, value: object) -> None:
        """Record a call that changed a tensor in place, by `value`, and the change of the tensor that it is a slice of."""
        if not self._aliases.knows(tensor):
            raise call.place.error(f"{call.name} writes into a constant: put the parts together with torch.cat or torch.stack")
        if call.name == "__setitem__" and self._aliases.is_part(value, tensor, call.arguments[1]):
            return
        ref = self._new(tuple(tensor.shape))
        self._append(call, ref)
        if self._passes_gradients(call):
            self._with_gradients.add(ref)
        self._aliases.change(tensor, ref, call.place, self._write_back)

    def _write_back(self, whole: Ref, index: object, part: Ref, place: Place) -> Ref:
        ref = self._new(self.recording.shapes[whole.index])
        self._append(Call("__setitem__", (whole, index, part), {}, (), place), ref)
        if {whole, part} & self._with_gradients:
            self._with_gradients.add(ref)
        return ref

    def _passes_gradients(self, call: Call) -> bool:
        """Whether the results of a call require gradients, because one of its inputs does."""

        def requires_gradient(leaf: object) -> bool:
            if isinstance(leaf, tuple):
                return any(map(requires_gradient, leaf))
            return (
                leaf in self._with_gradients
                if isinstance(leaf, Ref)
                else isinstance(leaf, ModelTensor) and self._tensors[leaf.name].requires_grad
            )

        return call.name not in WITHOUT_GRADIENTS and (
            any(map(requires_gradient, call.arguments)) or any(map(requires_gradient, call.keywords.values()))
        )

    def _new(self, shape: tuple[int, ...]) -> Ref:
        self.recording.shapes.append(shape)
        return Ref(len(self.recording.shapes) - 1)

    def _append(self, call: Call, *refs: Ref) -> None:
        self.recording.calls.append(Call(call.name, call.arguments, call.keywords, tuple(ref.index for ref in refs), call.place))

    def _check_type(self, tensor: Tensor, call: Call, raw_call: RawCall | None) -> None:
        before = raw_call.first.dtype if raw_call and raw_call.first is not None else tensor.dtype
        if call.name in CONVERSIONS and tensor.dtype != before:
            raise call.place.error(f"converts {before} to {tensor.dtype}: keep one dtype, or convert only constants")
        strange = tensor.dtype.is_complex or tensor.layout != torch.strided
        if strange or (tensor.is_floating_point() and tensor.dtype != self._dtype):
            raise call.place.error(f"{call.name} returns a tensor of {tensor.dtype}, {tensor.layout}: use dense tensors of {self._dtype}")


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """Map a model's modules to their qualified names, the first of several."""
    return {module: name for name, module in model.named_modules()}
