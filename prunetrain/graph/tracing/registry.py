"""What a network file defines: layers and declared tensors, each under one name in both modes, and the model's tensors in them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from prunetrain.graph.free_names import free_name
from prunetrain.graph.layergraph import Attribute, Declared, GraphError, Layer, check_identifier
from prunetrain.graph.tracing.records import ModelTensor, Place

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # a layer's tensors that have no gradient
_DTYPES = {torch.int64: "int64", torch.bool: "bool"}


@dataclass
class _DefinedLayer:
    layer: Layer
    position: tuple[int, int]  # of the layer's module in the model, and of the layer among all defined
    tensors: dict[str, Tensor]  # under the layer's own names


@dataclass
class Registry:
    """All definitions, by name.

    Args:
        tensors: the model's parameters and buffers by qualified name.
        modules: the positions of the model's modules by qualified name.
    """

    tensors: Mapping[str, Tensor]
    modules: Mapping[str, int]
    names: dict[str, str] = field(default_factory=dict)  # name of a tensor in the model -> in the file
    declared: dict[str, Declared] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)  # the values of declared tensors
    _layers: dict[str, _DefinedLayer] = field(default_factory=dict)
    _by_content: dict[object, str] = field(default_factory=dict)
    _owners: dict[str, str] = field(default_factory=dict)  # the model's tensor -> the layer or declared tensor that has it

    def __post_init__(self) -> None:
        self._first = {id(tensor): name for name, tensor in reversed(list(self.tensors.items()))}  # the first of several names

    def define_layer(self, layer: Layer, wanted: str, module: str, tensors: Mapping[str, str], place: Place) -> str:
        """Return the name of a layer, which is defined the first time.

        Args:
            layer: the layer without a name.
            wanted: the qualified name to make a name from.
            module: the qualified name of its module.
            tensors: the model's name of each tensor, by the layer's name for it.
            place: where it is called.

        Raises:
            TraceError: if another layer has one of the tensors.
        """
        tensors = {own: self._first[id(self.tensors[tensor])] for own, tensor in tensors.items()}
        learning = [self.tensors[tensor].requires_grad for own, tensor in tensors.items() if own not in _STATISTICS]
        layer = replace(layer, trainable=any(learning) or not learning)
        key = (layer, tuple(sorted(tensors.items())) or module)
        if key in self._by_content:
            return self._by_content[key]
        name = self._name_in_file(wanted, place)
        for tensor in tensors.values():
            self._claim_tensor(tensor, name, place)
        defined = {own: self.tensors[tensor] for own, tensor in tensors.items()}
        self._layers[name] = _DefinedLayer(replace(layer, name=name), (self.modules[module], len(self._layers)), defined)
        self._by_content[key] = name
        self.names |= {tensor: f"{name}.{own}" for own, tensor in tensors.items()}
        return name

    def add_tensor(self, layer: str, own: str, tensor: Tensor) -> None:
        """Give a layer a tensor that the model does not have."""
        self._layers[layer].tensors.setdefault(own, tensor)

    def declare_tensor(self, tensor: str, place: Place, *, positions: bool = False) -> Attribute:
        """Declare one of the model's tensors, unless it is declared already, and return it; as positions if it can be such."""
        tensor = self._first[id(self.tensors[tensor])]
        if tensor in self._by_content:
            return Attribute(self._by_content[tensor])
        value = self.tensors[tensor]
        is_parameter = isinstance(value, torch.nn.Parameter)
        name = self._name_in_file(tensor, place)
        self._claim_tensor(tensor, name, place)
        role, trainable = "parameter" if is_parameter else "buffer", value.requires_grad or not is_parameter
        made = Declared(name, tuple(value.shape), role, _dtype(value, place), trainable=trainable)
        self._declare(Declared.index(name, tuple(value.tolist())) if positions and are_positions(value) else made, value)
        self.names[tensor] = name
        self._by_content[tensor] = name
        return Attribute(name)

    def is_parameter(self, tensor: object) -> bool:
        """Whether something is one of the model's parameters, not a buffer."""
        return isinstance(tensor, ModelTensor) and isinstance(self.tensors[tensor.name], torch.nn.Parameter)

    def is_declared(self, tensor: object) -> bool:
        """Whether one of the model's tensors is declared already."""
        return isinstance(tensor, ModelTensor) and self._first[id(self.tensors[tensor.name])] in self._by_content

    def declare_constant(self, value: Tensor, place: Place, *, positions: bool = False) -> Attribute:
        """Declare a constant as a buffer and return it; as positions if they are wanted and it is a list of them."""
        scope = place.scope + "." if place.scope else ""
        positions = positions and are_positions(value)
        wanted = scope + ("index" if positions else "constant")
        for name, tensor in self.values.items():
            same = (wanted, tensor.dtype, tensor.shape) == (self._by_content.get(("constant", name)), value.dtype, value.shape)
            if same and torch.equal(tensor, value):
                return Attribute(name)
        name = self._name_in_file(wanted, place)
        made = Declared(name, tuple(value.shape), "buffer", _dtype(value, place))
        self._declare(Declared.index(name, tuple(value.tolist())) if positions else made, value)
        self._by_content["constant", name] = wanted
        return Attribute(name)

    def size(self, name: str) -> tuple[int, ...]:
        """Return the shape of a declared tensor."""
        return self.declared[name].shape

    def layer_named(self, name: str) -> Layer:
        """Return a layer by its name."""
        return self._layers[name].layer

    def layers(self, used: set[str]) -> tuple[Layer, ...]:
        """Return the layers with these names, in the order of the model's modules."""
        return tuple(entry.layer for entry in sorted(self._layers.values(), key=lambda entry: entry.position) if entry.layer.name in used)

    def state(self, layers: tuple[Layer, ...], declared: tuple[Declared, ...]) -> dict[str, Tensor]:
        """Return the tensors of a network's state dict, in its order: parameters, buffers, layers."""
        order = [tensor for role in ("parameter", "buffer") for tensor in declared if tensor.role == role]
        found = {tensor.name: self.values[tensor.name] for tensor in order}
        for layer in layers:
            found |= {f"{layer.name}.{own}": tensor for own, tensor in self._layers[layer.name].tensors.items()}
        return {name: tensor.detach() for name, tensor in found.items()}

    def _declare(self, tensor: Declared, value: Tensor) -> None:
        self.declared[tensor.name] = tensor
        self.values[tensor.name] = value

    def _claim_tensor(self, tensor: str, name: str, place: Place) -> None:
        other = self._owners.setdefault(tensor, name)
        if other != name:
            raise place.error(
                f"{tensor} would belong to both self.{other} and self.{name}: let one module own it, and call that module twice"
            )

    def _name_in_file(self, qualified: str, place: Place) -> str:
        """Return the name in the network file for a name in the model: layer1_0_conv1 for `layer1.0.conv1`.

        Raises:
            TraceError: if it cannot be a name there.
        """
        base = re.sub(r"\W", "_", qualified.replace("_orig_mod.", ""), flags=re.ASCII)  # which torch.compile puts around a part
        if not base[:1].isalpha():
            base = f"layer_{base}".rstrip("_")  # nn.Sequential counts from 0
        name = free_name(base, self._layers.keys() | self.declared.keys())
        try:
            check_identifier(name, "layer")
        except GraphError as error:
            raise place.error(str(error)) from None
        return name


def are_positions(tensor: Tensor) -> bool:
    """Whether a tensor can be declared as positions: a list of integers from 0 on."""
    known = tensor.dtype == torch.int64 and tensor.ndim == 1 and tensor.numel() > 0 and not tensor.is_meta
    return known and bool((tensor >= 0).all())


def _dtype(tensor: Tensor, place: Place) -> str:
    if tensor.dtype not in _DTYPES and not tensor.is_floating_point():
        raise place.error(f"a tensor of {tensor.dtype} cannot be declared: use float32, int64 or bool")
    return _DTYPES.get(tensor.dtype, "float32")
