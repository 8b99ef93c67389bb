"""LayerGraphs for tests: small networks by hand, and a hypothesis strategy that draws random ones.

`layer_graphs()` draws from every layer class and function of the catalog, with strides, paddings, groups, shared layers, residual
additions, gates, declared biases, and branches that meet at the output. In train mode BatchNorm needs a batch of two images or more.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from prunetrain.graph.catalog import ELEMENTWISE, OPERATORS
from prunetrain.graph.layergraph import TRAINING, Attribute, Declared, Layer, LayerGraph, Step, Value
from prunetrain.graph.shapes import Shape, ShapeError, infer_shapes

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Sketch:
    """A graph that is being written down, step by step; every method that adds a step returns its result.

    >>> net = Sketch("Net", (3, 8, 8))
    >>> x = net.conv("conv1", net.x, 4, kernel_size=3)
    >>> net.graph(net.call("F.relu", x))
    """

    def __init__(self, class_name: str, input_shape: Shape) -> None:
        self.class_name = class_name
        self.x = Value(0)
        self.shapes = [input_shape]
        self.layers: dict[str, Layer] = {}
        self.declared: dict[str, Declared] = {}
        self.steps: list[Step] = []

    def shape(self, value: Value) -> Shape:
        return self.shapes[value.index]

    def call(self, target: str, input: Value | Attribute, *other: Value | Attribute, **arguments: Any) -> Value:
        """A call of a function or operator."""
        named = {"other": other[0]} if other else {}
        return self._add(Step.make(target, input=input, **named, **arguments))

    def layer(self, name: str, kind: str, input: Value, **arguments: Any) -> Value:
        """Define a layer and call it; without arguments, call one that is defined already."""
        layer = Layer.make(name, kind, **arguments) if arguments else self.layers[name]
        return self._add(Step.make(f"self.{name}", input=input), layer)

    def conv(self, name: str, input: Value, out_channels: int, **arguments: Any) -> Value:
        return self.layer(name, "Conv2d", input, in_channels=self.shape(input)[0], out_channels=out_channels, **arguments)

    def linear(self, name: str, input: Value, out_features: int, **arguments: Any) -> Value:
        return self.layer(name, "Linear", input, in_features=self.shape(input)[-1], out_features=out_features, **arguments)

    def norm(self, name: str, input: Value, **arguments: Any) -> Value:
        shape = self.shape(input)
        return self.layer(name, "BatchNorm2d" if len(shape) == 3 else "BatchNorm1d", input, num_features=shape[0], **arguments)

    def conv_bn_relu(self, suffix: str, input: Value, out_channels: int, **arguments: Any) -> Value:
        """A convolution without bias `conv<suffix>`, BatchNorm `bn<suffix>`, ReLU; a prefix goes before a colon: "layer1_0_:1"."""
        prefix, _, number = suffix.rpartition(":")
        x = self.conv(f"{prefix}conv{number}", input, out_channels, bias=False, **arguments)
        return self.call("F.relu", self.norm(f"{prefix}bn{number}", x))

    def dropout(self, input: Value, p: float) -> Value:
        return self.call("F.dropout", input, p=p, training=TRAINING)

    def declare(self, name: str, shape: Shape) -> Attribute:
        self.declared[name] = Declared(name, shape)
        return Attribute(name)

    def classifier(self, name: str, input: Value, classes: int) -> Value:
        """Global average pooling, flatten, linear."""
        pooled = self.call("F.adaptive_avg_pool2d", input, output_size=1)
        return self.linear(name, self.call("torch.flatten", pooled, start_dim=1), classes)

    def graph(self, output: Value) -> LayerGraph:
        layers, declared = tuple(self.layers.values()), tuple(self.declared.values())
        graph = LayerGraph(self.class_name, self.shapes[0], layers, tuple(self.steps), output, declared)
        assert list(infer_shapes(graph)) == self.shapes
        return graph

    def _add(self, step: Step, layer: Layer | None = None) -> Value:
        """Raises ShapeError, and changes nothing, if the step does not fit."""
        self.shapes.append(self._shape_after(step, layer))
        self.steps.append(step)
        if layer is not None:
            self.layers[layer.name] = layer
        return Value(len(self.steps))

    def _shape_after(self, step: Step, layer: Layer | None) -> Shape:
        if step.target in OPERATORS:
            operands = [self.shape(a) if isinstance(a, Value) else self.declared[a.name].shape for _, a in step.arguments]
            return tuple(map(max, *operands))
        alone = step.map_values(lambda _: Value(0))
        return infer_shapes(LayerGraph("Alone", self.shape(step.inputs()[0]), (layer,) if layer else (), (alone,), Value(1)))[1]


# By hand.


def chain() -> LayerGraph:
    """Two convolutions, one with BatchNorm and one with a bias, and a classifier."""
    net = Sketch("Chain", (3, 8, 8))
    x = net.conv_bn_relu("1", net.x, 4, kernel_size=3, padding=1)
    x = net.call("F.relu", net.conv("conv2", x, 6, kernel_size=3, stride=2, padding=1))
    return net.graph(net.classifier("fc", x, 5))


def residual(stem: int = 8, inner: tuple[int, int] = (8, 16), wide: int = 16) -> LayerGraph:
    """A stem and two residual blocks, the second with a projection; smaller arguments make the network after a cut."""
    net = Sketch("Residual", (3, 8, 8))
    x = net.conv_bn_relu("1", net.x, stem, kernel_size=3, padding=1)
    shortcut = x
    x = net.conv_bn_relu("layer1_0_:1", x, inner[0], kernel_size=3, padding=1)
    x = net.norm("layer1_0_bn2", net.conv("layer1_0_conv2", x, stem, kernel_size=3, padding=1, bias=False))
    x = net.call("F.relu", net.call("+", x, shortcut))
    shortcut = net.conv("layer2_0_downsample_0", x, wide, kernel_size=1, stride=2, bias=False)
    shortcut = net.norm("layer2_0_downsample_1", shortcut)
    x = net.conv_bn_relu("layer2_0_:1", x, inner[1], kernel_size=3, stride=2, padding=1)
    x = net.norm("layer2_0_bn2", net.conv("layer2_0_conv2", x, wide, kernel_size=3, padding=1, bias=False))
    x = net.call("F.relu", net.call("+", x, shortcut))
    return net.graph(net.classifier("fc", x, 10))


def without_a_branch() -> LayerGraph:
    """`residual` after the first block's branch went; its constant stayed."""
    net = Sketch("Residual", (3, 8, 8))
    x = net.conv_bn_relu("1", net.x, 8, kernel_size=3, padding=1)
    x = net.call("F.relu", net.call("+", x, net.declare("layer1_0_bn2_bias", (8, 1, 1))))
    shortcut = net.norm("layer2_0_downsample_1", net.conv("layer2_0_downsample_0", x, 16, kernel_size=1, stride=2, bias=False))
    x = net.conv_bn_relu("layer2_0_:1", x, 16, kernel_size=3, stride=2, padding=1)
    x = net.norm("layer2_0_bn2", net.conv("layer2_0_conv2", x, 16, kernel_size=3, padding=1, bias=False))
    x = net.call("F.relu", net.call("+", x, shortcut))
    return net.graph(net.classifier("fc", x, 10))


def depthwise() -> LayerGraph:
    """A depthwise-separable block with ReLU6, as in MobileNet."""
    net = Sketch("Depthwise", (1, 12, 12))
    x = net.conv_bn_relu("1", net.x, 8, kernel_size=3, stride=2, padding=1)
    x = net.conv("block1_depthwise", x, 8, kernel_size=3, padding=1, groups=8, bias=False)
    x = net.call("F.relu6", net.norm("block1_bn1", x))
    x = net.call("F.relu6", net.norm("block1_bn2", net.conv("block1_pointwise", x, 16, kernel_size=1, bias=False)))
    return net.graph(net.classifier("fc", x, 4))


def head() -> LayerGraph:
    """Max and average pooling, flatten, linear layers with dropout, as in AlexNet."""
    net = Sketch("Head", (3, 16, 16))
    x = net.call("F.relu", net.conv("conv1", net.x, 4, kernel_size=5, stride=(2, 1), padding=(2, 1)))
    x = net.call("F.max_pool2d", x, kernel_size=3, stride=2, padding=1, ceil_mode=True)
    x = net.call("F.avg_pool2d", x, kernel_size=(2, 1), count_include_pad=False)
    x = net.call("torch.flatten", x, start_dim=1)
    x = net.call("F.relu", net.norm("bn1", net.linear("fc1", net.dropout(x, 0.5), 12, bias=False), eps=0.001, momentum=0.01))
    return net.graph(net.linear("fc2", net.dropout(x, 0.25), 3))


def gate() -> LayerGraph:
    """A squeeze-excite gate inside a residual block: two values are kept at the same time."""
    net = Sketch("Gate", (4, 6, 6))
    x = net.conv_bn_relu("block1_:1", net.x, 4, kernel_size=3, padding=1)
    squeezed = net.call("F.adaptive_avg_pool2d", x, output_size=1)
    squeezed = net.call("F.silu", net.conv("block1_squeeze", squeezed, 2, kernel_size=1))
    excited = net.call("torch.sigmoid", net.conv("block1_excite", squeezed, 4, kernel_size=1))
    x = net.call("*", x, excited)
    return net.graph(net.classifier("fc", net.call("+", x, net.x), 2))


# By chance.

_PREFIXES = ("", "layer1_0_", "layer1_1_", "stage2_", "head_", "block_3_4_")


@st.composite
def layer_graphs(draw: Draw, max_moves: int = 10) -> LayerGraph:
    """Valid networks of up to `max_moves` operations and what it takes to bring loose ends together."""
    image = st.tuples(st.integers(1, 4), st.integers(3, 7), st.integers(3, 7))
    shape = draw(st.one_of(image, image, image, st.tuples(st.integers(1, 6))))
    net = Sketch(draw(st.sampled_from(["Net", "ResNet20", "x", "input"])), shape)
    for _ in range(draw(st.sampled_from(range(max_moves + 1)))):
        newest = Value(len(net.steps))
        value = draw(st.one_of(st.just(newest), st.just(newest), st.just(newest), st.integers(0, newest.index).map(Value)))
        moves = _IMAGE_MOVES if len(net.shape(value)) == 3 else _FEATURE_MOVES
        try:
            draw(st.sampled_from(moves))(draw, net, value)
        except ShapeError:
            continue  # a window larger than the image, say: another move instead
    ends = [Value(i) for i in range(1, len(net.shapes)) if not any(Value(i) in step.inputs() for step in net.steps)]
    if len(ends) > 1 or draw(st.booleans()):
        ends = [_head(net, end) for end in ends or [net.x]]
    output = ends[0] if ends else net.x
    for end in ends[1:]:
        output = net.call("+", output, end)
    graph = net.graph(output)
    return replace(graph, layers=graph.layers[::-1]) if draw(st.sampled_from([False, False, True])) else graph


def _head(net: Sketch, value: Value) -> Value:
    name = _name(net, "", "fc")
    if len(net.shape(value)) == 3:
        return net.classifier(name, value, 3)
    return net.linear(name, net.call("torch.flatten", value, start_dim=1) if len(net.shape(value)) == 2 else value, 3)


def _name(net: Sketch, prefix: str, kind: str) -> str:
    return f"{prefix}{kind}{len(net.layers) + len(net.declared) + 1}"


def _drawn_name(draw: Draw, net: Sketch, kind: str) -> str:
    return _name(net, draw(st.sampled_from(_PREFIXES)), kind)


def _pair(low: int, high: int) -> st.SearchStrategy[Any]:
    return st.one_of(st.integers(low, high), st.tuples(st.integers(low, high), st.integers(low, high)))


def _conv(draw: Draw, net: Sketch, value: Value) -> Value:
    channels = net.shape(value)[0]
    groups = draw(st.sampled_from([1, 1, channels, *(g for g in (2, 3) if channels % g == 0)]))  # `channels` groups: depthwise
    out_channels = groups * draw(st.integers(1, max(1, 4 // groups)))
    kernel_size, stride = draw(_pair(1, 3)), draw(_pair(1, 2))
    odd = kernel_size in (1, 3, (1, 1), (1, 3), (3, 1), (3, 3))  # torch warns of even kernels with padding 'same'
    padding = draw(st.one_of(_pair(0, 2), st.sampled_from(["valid", "same"] if odd and stride in (1, (1, 1)) else ["valid"])))
    options = {
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": draw(st.sampled_from([1, 1, 2])),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"])),
    }
    return net.conv(_drawn_name(draw, net, "conv"), value, out_channels, **options)


def _norm(draw: Draw, net: Sketch, value: Value) -> Value:
    options = {"eps": draw(st.sampled_from([1e-5, 0.001])), "momentum": draw(st.sampled_from([0.1, 0.01])), "affine": draw(st.booleans())}
    return net.norm(_drawn_name(draw, net, "bn"), value, **options)


def _conv_bn_relu(draw: Draw, net: Sketch, value: Value) -> Value:
    return net.call("F.relu", _norm(draw, net, _conv(draw, net, value)))


def _linear(draw: Draw, net: Sketch, value: Value) -> Value:
    return net.linear(_drawn_name(draw, net, "fc"), value, draw(st.integers(1, 5)), bias=draw(st.booleans()))


def _activation(draw: Draw, net: Sketch, value: Value) -> Value:
    options = {
        "F.leaky_relu": {"negative_slope": draw(st.sampled_from([0.01, 0.2]))},
        "F.elu": {"alpha": draw(st.sampled_from([1.0, 0.5]))},
        "F.gelu": {"approximate": draw(st.sampled_from(["none", "tanh"]))},
    }
    target = draw(st.sampled_from(["F.relu", "F.relu", *sorted(ELEMENTWISE)]))
    return net.call(target, value, **options.get(target, {}))


def _dropout(draw: Draw, net: Sketch, value: Value) -> Value:
    p, training = draw(st.sampled_from([0.5, 0.0, 1, 0.25])), draw(st.sampled_from([TRAINING, TRAINING, False]))
    return net.call("F.dropout", value, p=p, training=training)


def _pool(draw: Draw, net: Sketch, value: Value) -> Value:
    options = {
        "kernel_size": draw(_pair(1, 3)),
        "stride": draw(st.one_of(st.none(), _pair(1, 3))),
        "padding": draw(_pair(0, 1)),
        "ceil_mode": draw(st.booleans()),
    }
    if draw(st.sampled_from(["average", "maximum"])) == "average":
        divisor = draw(st.sampled_from([None, None, 3]))
        return net.call("F.avg_pool2d", value, count_include_pad=draw(st.booleans()), divisor_override=divisor, **options)
    widest = 2 if options["padding"] in (0, (0, 0)) else 1  # no window of padding alone: its maximum is minus infinity
    return net.call("F.max_pool2d", value, dilation=draw(_pair(1, widest)), **options)


def _adaptive_pool(draw: Draw, net: Sketch, value: Value) -> Value:
    return net.call("F.adaptive_avg_pool2d", value, output_size=draw(_pair(1, 3)))


def _flatten(draw: Draw, net: Sketch, value: Value) -> Value:
    return net.call("torch.flatten", value, start_dim=draw(st.sampled_from([1, 1, -3, 2])), end_dim=draw(st.sampled_from([-1, 3])))


def _combine(draw: Draw, net: Sketch, value: Value) -> Value:
    """Add an earlier value of the same shape, perhaps the same one, or multiply with its tanh (so that numbers stay small)."""
    others = [Value(i) for i, shape in enumerate(net.shapes) if shape == net.shape(value)]
    other = draw(st.sampled_from(others))
    target = draw(st.sampled_from(["+", "+", "*"]))
    if target == "*":
        other = net.call("torch.tanh", other)
    operands = draw(st.sampled_from([(value, other), (other, value)]))
    return net.call(target, *operands)


def _residual(draw: Draw, net: Sketch, value: Value) -> Value:
    channels = net.shape(value)[0]
    options = {"kernel_size": 3, "padding": 1, "bias": draw(st.booleans())}
    branch = net.call("F.relu", net.norm(_drawn_name(draw, net, "bn"), net.conv(_drawn_name(draw, net, "conv"), value, 2, **options)))
    branch = net.norm(_drawn_name(draw, net, "bn"), net.conv(_drawn_name(draw, net, "conv"), branch, channels, **options))
    return net.call("F.relu", net.call("+", branch, value))


def _gate(draw: Draw, net: Sketch, value: Value) -> Value:
    squeezed = net.call("F.adaptive_avg_pool2d", value, output_size=1)
    excited = net.conv(_drawn_name(draw, net, "excite"), squeezed, net.shape(value)[0], kernel_size=1)
    return net.call("*", value, net.call(draw(st.sampled_from(["torch.sigmoid", "F.hardsigmoid"])), excited))


def _declared_bias(draw: Draw, net: Sketch, value: Value) -> Value:
    shape = net.shape(value)
    bias = net.declare(_drawn_name(draw, net, "bias"), (shape[0], *(1 for _ in shape[1:])))
    operands = draw(st.sampled_from([(value, bias), (value, bias), (bias, value)]))
    return net.call("+", *operands)


def _again(draw: Draw, net: Sketch, value: Value) -> Value:
    """Call a layer that is there already, if one fits."""
    name = draw(st.sampled_from(sorted(net.layers) or [""]))
    return net.layer(name, net.layers[name].kind, value) if name else value


_EVERYWHERE = (_norm, _activation, _activation, _dropout, _combine, _declared_bias, _again)
_WINDOWS = (_conv, _conv, _conv_bn_relu, _conv_bn_relu, _pool, _pool)
_IMAGE_MOVES = (*_EVERYWHERE, *_WINDOWS, _residual, _residual, _gate, _adaptive_pool, _flatten)
_FEATURE_MOVES = (*_EVERYWHERE, _linear, _linear)
