"""A torch module as a LayerGraph, by torch.fx. The one file of `graph` that imports torch.

Layers with parameters or buffers keep their qualified names with `.` as `_`. Activations, pooling, dropout and flatten become calls of
one canonical function whether the model has them as module, function or method.
"""

import inspect
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunetrain.errors import TraceError
from prunetrain.graph.catalog import LAYERS, Literal
from prunetrain.graph.layergraph import TRAINING, Argument, GraphError, Layer, LayerGraph, Step, Value, check_identifier, signature_of
from prunetrain.graph.shapes import ShapeError, infer_shapes

# A module without parameters: the function that it calls, and the attributes that are its arguments.
_MODULE_FUNCTIONS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "ReLU": ("F.relu", ()),
    "ReLU6": ("F.relu6", ()),
    "LeakyReLU": ("F.leaky_relu", ("negative_slope",)),
    "ELU": ("F.elu", ("alpha",)),
    "GELU": ("F.gelu", ("approximate",)),
    "SiLU": ("F.silu", ()),
    "Hardswish": ("F.hardswish", ()),
    "Hardsigmoid": ("F.hardsigmoid", ()),
    "Sigmoid": ("torch.sigmoid", ()),
    "Tanh": ("torch.tanh", ()),
    "Dropout": ("F.dropout", ("p",)),
    "Flatten": ("torch.flatten", ("start_dim", "end_dim")),
    "MaxPool2d": ("F.max_pool2d", ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    "AvgPool2d": ("F.avg_pool2d", ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")),
    "AdaptiveAvgPool2d": ("F.adaptive_avg_pool2d", ("output_size",)),
}

_CALLABLES: Final[dict[Callable[..., Any], str]] = {
    F.relu: "F.relu",
    torch.relu: "F.relu",
    F.relu6: "F.relu6",
    F.leaky_relu: "F.leaky_relu",
    F.elu: "F.elu",
    F.gelu: "F.gelu",
    F.silu: "F.silu",
    F.hardswish: "F.hardswish",
    F.hardsigmoid: "F.hardsigmoid",
    F.sigmoid: "torch.sigmoid",
    torch.sigmoid: "torch.sigmoid",
    F.tanh: "torch.tanh",
    torch.tanh: "torch.tanh",
    F.dropout: "F.dropout",
    F.max_pool2d: "F.max_pool2d",
    F.avg_pool2d: "F.avg_pool2d",
    F.adaptive_avg_pool2d: "F.adaptive_avg_pool2d",
    torch.flatten: "torch.flatten",
    torch.add: "+",
    torch.mul: "*",
    operator.add: "+",
    operator.iadd: "+",
    operator.mul: "*",
    operator.imul: "*",
}

_METHODS: Final[dict[str, str]] = {
    "relu": "F.relu",
    "sigmoid": "torch.sigmoid",
    "tanh": "torch.tanh",
    "flatten": "torch.flatten",
    "add": "+",
    "add_": "+",
    "mul": "*",
    "mul_": "*",
}

_IGNORED: Final = frozenset({"inplace", "return_indices"})  # no influence on the result
_IN_PLACE: Final = frozenset({operator.iadd, operator.imul})
_ALIASES: Final = frozenset({"Identity", "Flatten", "Dropout", torch.flatten, "flatten", F.dropout})  # may return their input's own memory


@dataclass(frozen=True)
class Traced:
    """A graph and the weights of the model it was traced from, under the graph's names."""

    graph: LayerGraph
    state: dict[str, Tensor]


def trace(model: nn.Module, example_input: Tensor) -> LayerGraph:
    """The graph of a model.

    Args:
        model: any module that torch.fx can trace, built from the layers and functions of the catalog.
        example_input: a batch, shape (N, C, H, W); only its shape counts.

    Raises:
        TraceError: if the model does something that a network file cannot say; the message names it.
    """
    return trace_with_state(model, example_input).graph


def trace_with_state(model: nn.Module, example_input: Tensor) -> Traced:
    """`trace`, together with the state dict under the graph's names. Tensors are shared with the model, not copied.

    Raises:
        TraceError: as `trace`.
    """
    builder, in_evaluation = (_Builder(model, tuple(example_input.shape[1:])) for _ in range(2))
    graph = _of_both_modes(builder.build(_fx_graph(model, training=True)), in_evaluation.build(_fx_graph(model, training=False)))
    state = {
        f"{flat}.{name}": tensor
        for qualified, flat in builder.names.items()
        for name, tensor in model.get_submodule(qualified).state_dict(keep_vars=False).items()
    }
    return Traced(graph, state)


def _fx_graph(model: nn.Module, *, training: bool) -> fx.Graph:
    """What torch.fx sees in train or in eval mode. The model's own modes stay as they are."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = training
        return fx.Tracer().trace(model)
    except Exception as error:  # whatever the model's own code raises on a proxy
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TraceError(f"{type(model).__name__} cannot be traced by torch.fx: {reason}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _of_both_modes(in_training: LayerGraph, in_evaluation: LayerGraph) -> LayerGraph:
    """One graph for both modes: a dropout that was on in train mode only is one that reads `self.training`."""
    steps = []
    for step, other in zip_longest(in_training.steps, in_evaluation.steps):
        merged = step
        if step and step != other and step.target == "F.dropout":
            arguments = dict(step.arguments)
            if other == Step.make(step.target, **{**arguments, "training": False}):
                merged = Step.make(step.target, **{**arguments, "training": TRAINING})
        if merged is step and step != other:
            raise TraceError(
                f"{in_training.class_name}.forward takes other steps in train mode than in eval mode; prunetrain knows only dropout so far"
            )
        steps.append(merged)
    return replace(in_training, steps=tuple(steps))


def _refuse_hidden_changes(nodes: Iterable[fx.Node], modules: Mapping[str, nn.Module]) -> None:
    """Steps return new results; a result that is changed in place must not be read under an older name afterwards.

    An augmented assignment (`x += y`) is an ordinary addition to torch.fx and goes unseen.

    Raises:
        TraceError: where it is.
    """
    memory: dict[fx.Node, fx.Node] = {}  # the node that allocated what a node returns
    for node in nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        method = node.op == "call_method" and str(node.target).endswith("_")
        changes = method or node.target in _IN_PLACE or bool(getattr(module, "inplace", node.kwargs.get("inplace")))
        if source is not None and changes:
            for alias, owner in memory.items():
                if owner is memory[source] and any(user > node for user in alias.users):
                    raise TraceError(f"{_described(node)} changes {alias.name} in place, which is read again later")
        same = source is not None and (changes or (type(module).__name__ if module else node.target) in _ALIASES)
        memory[node] = memory[source] if source is not None and same else node


class _Builder:
    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        self._model = model
        self._input_shape = input_shape
        self._modules = dict(model.named_modules())
        self._steps: list[Step] = []
        self._layers: dict[str, Layer] = {}
        self.names: dict[str, str] = {}  # qualified name -> name in the graph

    def build(self, traced: fx.Graph) -> LayerGraph:
        _refuse_hidden_changes(traced.nodes, self._modules)
        values: dict[fx.Node, Argument] = {}
        output: Argument = None
        needed = _needed(traced)
        for node in traced.nodes:
            if node.op == "placeholder":
                if values:
                    raise TraceError(f"{type(self._model).__name__}.forward takes more than one argument; networks take one image batch")
                values[node] = Value(0)
            elif node.op == "output":
                output = self._argument(node.args[0], values)
            elif node in needed:
                values[node] = self._node(node, values)
        if not isinstance(output, Value):
            raise TraceError(f"{type(self._model).__name__}.forward must return one tensor")
        class_name = type(self._model).__name__
        order = {name: position for position, name in enumerate(self._modules)}
        qualified = sorted(self.names, key=order.__getitem__)
        self.names = {name: self.names[name] for name in qualified}
        try:
            graph = LayerGraph(class_name, self._input_shape, tuple(self._layers[name] for name in qualified), tuple(self._steps), output)
            infer_shapes(graph)
        except ShapeError as error:
            shape = "x".join(map(str, self._input_shape))
            raise TraceError(f"{class_name} does not fit an input of {shape}: {error}") from None
        except GraphError as error:
            raise TraceError(f"{class_name} cannot be a network file: {error}") from None
        return graph

    def _argument(self, argument: Any, values: dict[fx.Node, Argument]) -> Argument:
        if isinstance(argument, fx.Node):
            return values[argument]
        if isinstance(argument, (tuple, list)):
            return tuple(self._argument(item, values) for item in argument)  # type: ignore[misc]
        plain: Argument = _plain(argument)
        return plain

    def _node(self, node: fx.Node, values: dict[fx.Node, Argument]) -> Argument:
        args = [self._argument(a, values) for a in node.args]
        kwargs = {name: self._argument(a, values) for name, a in node.kwargs.items()}
        try:
            match node.op:
                case "call_module":
                    return self._module(str(node.target), self._modules[str(node.target)], [*args, *kwargs.values()])
                case "call_function" if node.target in _CALLABLES:
                    return self._call(_CALLABLES[node.target], args, kwargs)
                case "call_method" if node.target in _METHODS:
                    return self._call(_METHODS[str(node.target)], args, kwargs)
        except ValueError as error:
            raise TraceError(f"{_described(node)}: {error}") from None
        raise TraceError(f"{_described(node)} is nothing that prunetrain knows yet")

    def _module(self, name: str, module: nn.Module, args: list[Argument]) -> Argument:
        kind = type(module).__name__
        if kind in LAYERS and type(module) is getattr(nn, kind):
            if name not in self._layers:
                self._layers[name] = Layer.make(self._name(name), kind, **_constructor_arguments(module))
            return self._add(Step.make(f"self.{self.names[name]}", input=args[0]))
        if kind == "Identity" and type(module) is nn.Identity:
            return args[0]
        if kind in _MODULE_FUNCTIONS and type(module) is getattr(nn, kind):
            target, attributes = _MODULE_FUNCTIONS[kind]
            arguments = {attribute: _plain(getattr(module, attribute)) for attribute in attributes}
            if target == "F.dropout":
                arguments["training"] = TRAINING
            return self._call(target, args, arguments)
        raise ValueError(f"nn.{kind} is not a layer that prunetrain knows yet")

    def _name(self, qualified: str) -> str:
        base = name = qualified.replace(".", "_")
        if not base[:1].isalpha():
            base = name = f"layer_{base}"  # nn.Sequential counts from 0
        number = 2
        while name in self.names.values():
            name, number = f"{base}_{number}", number + 1
        check_identifier(name, "layer")
        self.names[qualified] = name
        return name

    def _call(self, target: str, args: list[Argument], kwargs: dict[str, Argument]) -> Value:
        names = signature_of(target).names()
        given = dict(zip(names, args, strict=False)) | {name: value for name, value in kwargs.items() if name not in _IGNORED}
        if len(args) > len(names):
            raise ValueError("too many arguments")
        if target in ("F.max_pool2d", "F.avg_pool2d") and _pair(given.get("stride")) == _pair(given.get("kernel_size")):
            given["stride"] = None  # the default: the kernel's own size
        return self._add(Step.make(target, **given))

    def _add(self, step: Step) -> Value:
        self._steps.append(step)
        return Value(len(self._steps))


def _needed(traced: fx.Graph) -> set[fx.Node]:
    """The nodes that the output depends on."""
    needed: set[fx.Node] = set()
    for node in reversed(traced.nodes):
        if node.op == "output" or node in needed:
            needed.update(node.all_input_nodes)
    return needed


def _plain(value: Any) -> Any:
    """Numbers of other libraries, such as numpy's, as Python's own; lists as tuples."""
    match value:
        case bool() | str() | None:
            return value
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case tuple() | list():
            return tuple(map(_plain, value))
    return value


def _pair(value: Argument) -> Argument:
    return (value, value) if isinstance(value, int) else value


def _constructor_arguments(module: nn.Module) -> dict[str, Literal]:
    """What the constructor was given, read back from the module's attributes (its repr hides some)."""
    known = LAYERS[type(module).__name__].names()
    arguments: dict[str, Literal] = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if name in ("device", "dtype"):
            continue
        value = getattr(module, name, parameter.default)
        if name == "bias":
            value = value is not None
        if name in known:
            arguments[name] = _plain(value)
        elif name != "bias" and value != parameter.default:
            raise ValueError(f"nn.{type(module).__name__} with {name}={value!r} is not supported yet")
    if arguments.get("affine") and module.bias is None:  # newer torch has an argument for it, every torch lets one take it away
        raise ValueError(f"nn.{type(module).__name__} with bias=False is not supported yet")
    return arguments


def _described(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    where = ""
    if node.stack_trace:
        lines = [line.strip() for line in node.stack_trace.splitlines() if line.strip().startswith("File")]
        where = f" ({lines[-1]})" if lines else ""
    kind = {"call_module": "module", "call_method": "method", "call_function": "function", "get_attr": "attribute"}[node.op]
    return f"{kind} {target}{where}"
