"""Layers called as functions: `F.conv2d(x, self.weight, self.bias)` is the layer nn.Conv2d, if one module owns its tensors.

With computed weights it stays a function that reads declared tensors.
"""

from collections.abc import Mapping
from typing import Any

import torch

from prunetrain.graph.layergraph import Layer, Value
from prunetrain.graph.tracing.builder import Builder
from prunetrain.graph.tracing.calls import arguments
from prunetrain.graph.tracing.records import Call, CalledLayer, ModelTensor


def call_module(build: Builder, call: Call, modules: Mapping[str, torch.nn.Module]) -> Value:
    """A call of a layer's module."""
    leaf, images = call.arguments
    assert isinstance(leaf, CalledLayer)
    module = modules[leaf.name]
    own = [*module.named_parameters(), *module.named_buffers()]
    tensors = {name: f"{leaf.name}.{name}".lstrip(".") for name, _ in own}
    name = build.registry.define_layer(leaf.layer, leaf.name, leaf.name, tensors, call.place)
    return build.add(f"self.{name}", input=build.tensor(images))


def _owner(*tensors: object) -> str | None:
    """Return the qualified name of the module that owns all given tensors, or None if there is no such module."""
    given = [tensor for tensor in tensors if tensor is not None]
    owners = {tensor.name.rpartition(".")[0] if isinstance(tensor, ModelTensor) else None for tensor in given}
    return owners.pop() if len(owners) == 1 else None


def _one_module_owns(build: Builder, *tensors: object) -> bool:
    """Whether all given tensors are of one module, all parameters or all buffers: a file trains all weights of a layer or none."""
    return _owner(*tensors) is not None and len({build.registry.is_parameter(tensor) for tensor in tensors if tensor is not None}) == 1


def _add_layer_call(build: Builder, call: Call, layer: Layer, images: object, tensors: dict[str, Any]) -> Value:
    """A call of a layer whose tensors are given under the layer's own names."""
    given = {own: tensor.name for own, tensor in tensors.items() if tensor is not None}
    module, wanted = call.place.scope, call.place.scope
    if given:
        module, _, attribute = next(iter(given.values())).rpartition(".")
        wanted = module if attribute in layer.signature.axes else next(iter(given.values())).removesuffix("weight").rstrip("._")
    if "num_batches_tracked" in layer.signature.axes and "running_mean" in given:
        counter = f"{module}.num_batches_tracked".lstrip(".")
        if counter in build.registry.tensors:
            given["num_batches_tracked"] = counter
    name = build.registry.define_layer(layer, wanted, module, given, call.place)
    if "num_batches_tracked" in layer.signature.axes and "running_mean" in given:
        build.registry.add_tensor(name, "num_batches_tracked", torch.zeros((), dtype=torch.int64))
    return build.add(f"self.{name}", input=build.tensor(images))


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def convolution(build: Builder, call: Call) -> Value:
    """conv1d, conv2d and conv_transpose2d."""
    transposed = call.name == "conv_transpose2d"
    order = "stride padding output_padding groups dilation" if transposed else "stride padding dilation groups"
    given = arguments(call, f"input weight bias {order}")
    images, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    options = {name: _single(value) for name, value in given.items()}
    if _one_module_owns(build, weight, bias):
        first, second, *kernel = build.sizes_of(weight)[0]
        groups = options.get("groups", 1)
        channels = (
            {"in_channels": first, "out_channels": second * groups}
            if transposed
            else {"in_channels": second * groups, "out_channels": first}
        )
        kind = {"conv1d": "Conv1d", "conv2d": "Conv2d", "conv_transpose2d": "ConvTranspose2d"}[call.name]
        layer = Layer.make("", kind, **channels, kernel_size=_single(tuple(kernel)), bias=bias is not None, **options)
        return _add_layer_call(build, call, layer, images, {"weight": weight, "bias": bias})
    return build.add(f"F.{call.name}", input=build.tensor(images), weight=build.tensor(weight), bias=build.optional(bias), **options)


def linear(build: Builder, call: Call) -> Value:
    """F.linear."""
    given = arguments(call, "input weight bias")
    images, weight, bias = given["input"], given["weight"], given.get("bias")
    if _one_module_owns(build, weight, bias) and build.rank(weight) == 2:
        out_features, in_features = build.sizes_of(weight)[0]
        layer = Layer.make("", "Linear", in_features=in_features, out_features=out_features, bias=bias is not None)
        return _add_layer_call(build, call, layer, images, {"weight": weight, "bias": bias})
    return build.add("F.linear", input=build.tensor(images), weight=build.tensor(weight), bias=build.optional(bias))


def batch_norm(build: Builder, call: Call) -> Value:
    """F.batch_norm: a layer if it follows the mode and one module owns its tensors."""
    given = arguments(call, "input running_mean running_var weight bias training momentum eps cudnn_enabled")
    given.pop("cudnn_enabled", None)
    tensors = {name: given.pop(name, None) for name in ("weight", "bias", "running_mean", "running_var")}
    images, training = given.pop("input"), given.pop("training", False)
    tracked = tensors["running_mean"] is not None
    frozen = tracked and build.registry.is_declared(tensors["running_mean"])  # in train mode, which is traced first
    follows = training == build.traced.training and not frozen if tracked else training
    rank = build.rank(images)
    affine = tensors["weight"] is not None
    learned = [tensors[name] for name in ("weight", "bias") if tensors[name] is not None]
    mixed = len(learned) == 1 or rank not in (2, 3, 4) or (learned and not _one_module_owns(build, *learned))
    if follows and not mixed and _owner(*tensors.values()) is not None:
        options = {"num_features": build.sizes_of(images)[0][1], "affine": affine, "track_running_stats": tracked, **given}
        return _add_layer_call(build, call, Layer.make("", "BatchNorm2d" if rank == 4 else "BatchNorm1d", **options), images, tensors)
    named = {name: build.optional(tensor) for name, tensor in tensors.items()}
    return build.add("F.batch_norm", input=build.tensor(images), **named, training=training, **given)


def layer_norm(build: Builder, call: Call) -> Value:
    """F.layer_norm and F.rms_norm."""
    rms = call.name == "rms_norm"
    given = arguments(call, "input normalized_shape weight eps" if rms else "input normalized_shape weight bias eps cudnn_enable")
    given.pop("cudnn_enable", None)
    images, weight, bias = given.pop("input"), given.pop("weight", None), given.pop("bias", None)
    if rms or (weight is not None and _one_module_owns(build, weight, bias)):
        extra = {} if rms else {"bias": bias is not None}
        layer = Layer.make("", "RMSNorm" if rms else "LayerNorm", elementwise_affine=weight is not None, **extra, **given)
        if weight is not None and _owner(weight, bias) is None:
            raise ValueError("a computed weight is not supported")
        return _add_layer_call(build, call, layer, images, {"weight": weight, "bias": bias})
    return build.add("F.layer_norm", input=build.tensor(images), weight=build.optional(weight), bias=build.optional(bias), **given)


def group_norm(build: Builder, call: Call) -> Value:
    """F.group_norm."""
    given = arguments(call, "input num_groups weight bias eps cudnn_enabled")
    given.pop("cudnn_enabled", None)
    images, weight, bias = given.pop("input"), given.pop("weight", None), given.pop("bias", None)
    if (weight is None) != (bias is None) or (weight is not None and not _one_module_owns(build, weight, bias)):
        raise ValueError("needs a weight and a bias that one module owns, or neither")
    layer = Layer.make("", "GroupNorm", num_channels=build.sizes_of(images)[0][1], affine=weight is not None, **given)
    return _add_layer_call(build, call, layer, images, {"weight": weight, "bias": bias})


def instance_norm(build: Builder, call: Call) -> Value:
    """F.instance_norm of images."""
    given = arguments(call, "input running_mean running_var weight bias use_input_stats momentum eps")
    tensors = {name: given.pop(name, None) for name in ("weight", "bias", "running_mean", "running_var")}
    images, uses_images = given.pop("input"), given.pop("use_input_stats", True)
    tracked = tensors["running_mean"] is not None
    if (
        build.rank(images) != 4
        or (any(tensors.values()) and _owner(*tensors.values()) is None)
        or uses_images != (not tracked or build.traced.training)
    ):
        raise ValueError("these arguments are not supported")
    options = {"affine": tensors["weight"] is not None, "track_running_stats": tracked, **given}
    layer = Layer.make("", "InstanceNorm2d", num_features=build.sizes_of(images)[0][1], **options)
    return _add_layer_call(build, call, layer, images, tensors)


def prelu(build: Builder, call: Call) -> Value:
    """F.prelu."""
    given = arguments(call, "input weight")
    weight = given["weight"]
    if not isinstance(weight, ModelTensor):
        raise ValueError("a computed weight is not supported")
    layer = Layer.make("", "PReLU", num_parameters=build.sizes_of(weight)[0][0])
    return _add_layer_call(build, call, layer, given["input"], {"weight": weight})


FUNCTIONAL = {
    **dict.fromkeys(("conv1d", "conv2d", "conv_transpose2d"), convolution),
    "linear": linear,
    "batch_norm": batch_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "prelu": prelu,
}
