"""Writing a LayerGraph down step by step, for networks by hand and for random ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prunetrain.graph.function_shapes import FUNCTION_SHAPES
from prunetrain.graph.layergraph import TRAINING, Attribute, Declared, Layer, LayerGraph, Step, Value
from prunetrain.graph.shapes import ShapeError, check_shapes, infer_shapes, layer_shape
from prunetrain.graph.windows import Shape, shape_text


class Sketch:
    """A graph that is being written down, step by step; every method that adds a step returns its result.

    >>> net = Sketch("Net", (3, 8, 8))
    >>> x = net.conv("conv1", net.x, 4, kernel_size=3)
    >>> net.graph(net.call("F.relu", x))
    """

    def __init__(self, class_name: str, input_shape: Shape) -> None:
        self.class_name = class_name
        self.x = Value(0)
        self.shapes: dict[int, list[Shape]] = {n: [(n, *input_shape)] for n in (1, 2)}  # with batches of one image and of two
        self.layers: dict[str, Layer] = {}
        self.declared: dict[str, Declared] = {}
        self.steps: list[Step] = []

    def shape(self, value: Value) -> Shape:
        """Without the batch: (C, H, W) of images."""
        return self.full_shape(value)[1:]

    def full_shape(self, value: Value, batch_size: int = 1) -> Shape:
        return self.shapes[batch_size][value.index]

    def has_rows(self, value: Value) -> bool:
        """Whether a value has one row an image, whatever the batch."""
        one, two = self.full_shape(value), self.full_shape(value, 2)
        return bool(one) and one[0] == 1 and two == (2, *one[1:])

    def call(self, target: str, input: Value | Attribute | float, *other: Value | Attribute | float, **arguments: Any) -> Value:
        """A call of a function or operator."""
        named = {"other": other[0]} if other else {}
        return self.step(target, input=input, **named, **arguments)

    def step(self, target: str, **arguments: Any) -> Value:
        """A call of a function that has no `input`, such as torch.cat."""
        return self._add(Step.make(target, **arguments))

    def cat(self, *values: Value | Attribute, dim: int = 1) -> Value:
        return self.step("torch.cat", tensors=values, dim=dim)

    def slice(self, input: Value, dim: int, start: int = 0, stop: int | None = None, step: int = 1) -> Value:
        return self.call("[:]", input, dim=dim, start=start, stop=stop, step=step)

    def layer(self, name: str, kind: str, input: Value | Attribute, **arguments: Any) -> Value:
        """Define a layer and call it; without arguments, call one that is defined already."""
        layer = Layer.make(name, kind, **arguments) if arguments else self.layers[name]
        return self._add(Step.make(f"self.{name}", input=input), layer)

    def conv(self, name: str, input: Value, out_channels: int, **arguments: Any) -> Value:
        return self.layer(name, "Conv2d", input, in_channels=self.shape(input)[0], out_channels=out_channels, **arguments)

    def linear(self, name: str, input: Value, out_features: int, **arguments: Any) -> Value:
        return self.layer(name, "Linear", input, in_features=self.full_shape(input)[-1], out_features=out_features, **arguments)

    def norm(self, name: str, input: Value, **arguments: Any) -> Value:
        shape = self.shape(input)
        return self.layer(name, "BatchNorm2d" if len(shape) == 3 else "BatchNorm1d", input, num_features=shape[0], **arguments)

    def layer_norm(self, name: str, input: Value, **arguments: Any) -> Value:
        return self.layer(name, "LayerNorm", input, normalized_shape=self.full_shape(input)[-1], **arguments)

    def conv_bn_relu(self, suffix: str, input: Value, out_channels: int, **arguments: Any) -> Value:
        """A convolution without bias `conv<suffix>`, BatchNorm `bn<suffix>`, ReLU; a prefix goes before a colon: "layer1_0_:1"."""
        prefix, _, number = suffix.rpartition(":")
        x = self.conv(f"{prefix}conv{number}", input, out_channels, bias=False, **arguments)
        return self.call("F.relu", self.norm(f"{prefix}bn{number}", x))

    def dropout(self, input: Value, p: float) -> Value:
        return self.call("F.dropout", input, p=p, training=TRAINING)

    def stochastic_depth(self, input: Value, p: float) -> Value:
        """Some images of a batch become zero: dropout of their only channel."""
        target = {2: "F.dropout1d", 3: "F.dropout2d", 4: "F.dropout3d"}[len(self.full_shape(input))]
        dropped = self.call(target, self.call("torch.unsqueeze", input, dim=1), p=p, training=TRAINING)
        return self.call("torch.squeeze", dropped, dim=1)

    def declare(self, name: str, shape: Shape, role: str = "parameter", dtype: str = "float32") -> Attribute:
        self.declared[name] = Declared(name, shape, role, dtype)
        return Attribute(name)

    def index(self, name: str, *values: int) -> Attribute:
        self.declared[name] = Declared.index(name, values)
        return Attribute(name)

    def classifier(self, name: str, input: Value, classes: int) -> Value:
        """Global average pooling, flatten, linear."""
        pooled = self.call("F.adaptive_avg_pool2d", input, output_size=1)
        return self.linear(name, self.call("torch.flatten", pooled, start_dim=1), classes)

    def graph(self, output: Value, *extra: Value, auxiliary: tuple[Value, ...] = ()) -> LayerGraph:
        layers, declared = tuple(self.layers.values()), tuple(self.declared.values())
        steps, input_shape = tuple(self.steps), self.shape(self.x)
        graph = LayerGraph(self.class_name, input_shape, layers, steps, output, declared, extra, auxiliary)
        check_shapes(graph)
        assert list(infer_shapes(graph)) == self.shapes[1]
        return graph

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Take back what was written down inside if it does not fit."""
        steps, layers, declared = len(self.steps), dict(self.layers), dict(self.declared)
        try:
            yield
        except ShapeError:
            self.layers, self.declared = layers, declared
            del self.steps[steps:]
            for shapes in self.shapes.values():
                del shapes[steps + 1 :]

    def _add(self, step: Step, layer: Layer | None = None) -> Value:
        """Raises ShapeError, and changes nothing, if the step does not fit."""
        found = {batch_size: self._shape_after(step, layer, batch_size) for batch_size in self.shapes}
        for batch_size, shape in found.items():
            self.shapes[batch_size].append(shape)
        self.steps.append(step)
        if layer is not None:
            self.layers[layer.name] = layer
        return Value(len(self.steps))

    def _shape_after(self, step: Step, layer: Layer | None, batch_size: int) -> Shape:
        def shape_of(operand: Value | Attribute) -> Shape:
            return self.full_shape(operand, batch_size) if isinstance(operand, Value) else self.declared[operand.name].shape

        try:
            shape = layer_shape(layer, shape_of(step.operands()[0])) if layer else FUNCTION_SHAPES[step.target](step, shape_of)
            if min(shape, default=1) < 1:
                raise ValueError(f"nothing is left: {shape_text(shape)}")
        except ValueError as error:
            raise ShapeError(f"{step.target}: {error}", len(self.steps)) from None
        return shape
