"""Operators in all their spellings, and the random numbers that stochastic depth multiplies by."""

from dataclasses import replace
from math import inf, nextafter
from typing import Any, Final

from prunetrain.graph.layergraph import Value
from prunetrain.graph.tracing.builder import STOCHASTIC_DEPTH, Builder, ConvertedResult, Noise, UnsupportedResult
from prunetrain.graph.tracing.calls import arguments
from prunetrain.graph.tracing.records import Call, Constant, ModelTensor, Ref

_SYMBOLS: Final = {
    **dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), "+"),
    **dict.fromkeys(("sub", "sub_", "subtract", "subtract_", "__sub__", "__isub__", "__rsub__", "rsub"), "-"),
    **dict.fromkeys(("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"), "*"),
    **dict.fromkeys(("div", "div_", "divide", "divide_", "true_divide", "true_divide_", "__truediv__", "__itruediv__"), "/"),
    **dict.fromkeys(("__rdiv__", "__rtruediv__"), "/"),
}
_REVERSED: Final = frozenset(("__rsub__", "rsub", "__rdiv__", "__rtruediv__"))


def binary(build: Builder, call: Call) -> ConvertedResult:
    """An operator on two tensors, or a tensor and a number."""
    symbol = _SYMBOLS[call.name]
    given = arguments(call, "input other alpha" if symbol in "+-" else "input other rounding_mode")
    if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:
        raise ValueError("alpha and rounding_mode are not supported")
    leaves = [given["input"], given["other"]]
    if call.name in _REVERSED:
        leaves.reverse()
    made = [build.converted(leaf) if isinstance(leaf, Ref) else leaf for leaf in leaves]
    if any(isinstance(one, Noise) for one in made):
        return _combine_random_numbers(build, symbol, leaves, made)
    ranks = [build.rank(leaf) for leaf in leaves]
    one, other = build.operand(leaves[0], ranks[1]), build.operand(leaves[1], ranks[0])
    return build.add(symbol, input=one, other=other)


def _combine_random_numbers(build: Builder, symbol: str, leaves: list[Any], made: list[Any]) -> ConvertedResult:
    """Handle random numbers plus, divided by or times something."""
    noise: Noise
    noise, other = made if isinstance(made[0], Noise) else reversed(made)
    divided = symbol == "/" and isinstance(made[0], Noise)
    if isinstance(other, float | int) and not isinstance(other, bool):
        if symbol == "+" and noise.uniform and noise.keep == 0:
            return replace(noise, keep=float(other))
        if divided and other == noise.keep and not noise.scaled and not noise.uniform:
            return replace(noise, scaled=True)
    elif symbol == "*" and isinstance(other, Value) and not noise.uniform:
        image = other
        if not noise.scaled and noise.keep < 1:
            image = _undo_scaling(build, other, noise.keep)
        rows = tuple((shape[0], *(1,) * (len(shape) - 1)) for shape in build.sizes_of(image))
        noisy = next(leaf for leaf, one in zip(leaves, made, strict=True) if one is noise)
        if build.sizes_of(noisy) == rows and len(rows[0]) in (2, 3, 4):
            if noise.drawn in build.used_random_numbers:
                raise ValueError("multiplies by the same random numbers twice, but a network file draws new ones each time")
            build.used_random_numbers.add(noise.drawn)
            return build.add(STOCHASTIC_DEPTH, input=image, p=probability_of(noise.keep))
        raise ValueError("needs one random number for each image")
    raise ValueError(
        "random numbers are supported only in dropout and stochastic depth (one number per image, divided by the keep probability)"
    )


def _undo_scaling(build: Builder, value: Value, keep: float) -> Value:
    """Return what was divided by its keep probability (older copies of stochastic depth divide the images, not the random numbers)."""
    step = build.lines[value.index - 1].step if value.index else None
    if step is None or step.target != "/" or step["other"] != keep or not isinstance(step["input"], Value):
        raise ValueError(f"drops images without dividing the others by {keep}, which a network file cannot express")
    found: Value = step["input"]
    return found


def probability_of(keep: float) -> float:
    """Return the shortest number p with exactly 1 - p == keep.

    Raises:
        ValueError: if there is none.
    """
    near = 1.0 - keep
    for digits in range(1, 17):
        if 1.0 - round(near, digits) == keep:
            return round(near, digits)
    for candidate in (near, nextafter(near, inf), nextafter(near, -inf)):
        if 1.0 - candidate == keep:
            return candidate
    raise ValueError(f"no p gives 1 - p == {keep!r}")


def bernoulli(build: Builder, call: Call) -> Noise:
    """Random zeros and ones with one probability for all: drawn into an empty tensor, or from a tensor filled with the probability."""
    given = arguments(call, "input p generator")
    leaf, keep = given["input"], given.get("p", 0.5)
    if call.name == "bernoulli" and isinstance(leaf, Constant) and bool((leaf.tensor == leaf.tensor.flatten()[0]).all()):
        keep = float(leaf.tensor.flatten()[0])
    elif (
        call.name == "bernoulli" or isinstance(leaf, ModelTensor) or given.get("generator") is not None or not isinstance(keep, float | int)
    ):
        raise ValueError("random numbers with a probability that is computed, or from a generator, are not supported")
    return Noise(call.results[0], float(keep))


def uniform(build: Builder, call: Call) -> Noise:
    """Uniform random numbers."""
    return Noise(call.results[0], 0.0, uniform=True)


def floor(build: Builder, call: Call) -> Noise:
    """Rounding down, which makes ones and zeros from keep + rand."""
    noise = build.converted(call.arguments[0])
    if not isinstance(noise, Noise) or not noise.uniform or not 0 < noise.keep < 1:
        raise ValueError("is supported only on keep probability + rand, as in stochastic depth")
    return replace(noise, uniform=False)


def power(build: Builder, call: Call) -> Value:
    """Powers. The exponent is a number, or a tensor as in generalised-mean pooling (Radenovic et al., arXiv 1711.02512)."""
    given = arguments(call, "input exponent")
    if isinstance(given["exponent"], int | float):
        return build.add("torch.pow", input=build.tensor(given["input"]), exponent=given["exponent"])
    ranks = [build.rank(leaf) for leaf in given.values()]
    base, exponent = build.operand(given["input"], ranks[1]), build.operand(given["exponent"], ranks[0])
    return build.add("**", input=base, other=exponent)


def reciprocal(build: Builder, call: Call) -> Value:
    """One over x."""
    return build.add("/", input=1, other=build.tensor(call.arguments[0]))


def elementwise_max_or_min(build: Builder, call: Call) -> Value:
    """torch.maximum and minimum of two tensors."""
    given = arguments(call, "input other")
    target = "torch.maximum" if "max" in call.name else "torch.minimum"
    return build.add(target, input=build.tensor(given["input"]), other=build.tensor(given["other"]))


def largest_or_smallest(build: Builder, call: Call) -> Value | tuple[ConvertedResult, ...]:
    """torch.max and torch.min: of two tensors, or along a dimension, without the positions."""
    second = call.arguments[1] if len(call.arguments) > 1 else call.keywords.get("other")
    if isinstance(second, Ref | ModelTensor | Constant):
        return elementwise_max_or_min(build, call)
    given = arguments(call, "input dim keepdim")
    if "dim" not in given:
        raise ValueError("runs over all images at once: give a dimension")
    values = build.add(f"torch.{call.name}", input=build.tensor(given.pop("input")), **given)
    return values, UnsupportedResult(f"holds the positions of {call.name}: use its values only")


def product(build: Builder, call: Call) -> Value:
    """Matrix products."""
    given = arguments(call, "input other")
    one, other = build.tensor(given["input"]), build.tensor(given["other"])
    if build.rank(one) < 2 or build.rank(other) < 2:
        raise ValueError("products with vectors are not supported: unsqueeze them to matrices")
    return build.add("@", input=one, other=other)


def einsum(build: Builder, call: Call) -> Value:
    """torch.einsum."""
    equation, *operands = call.arguments
    if len(operands) == 1 and isinstance(operands[0], tuple):
        operands = list(operands[0])
    if not isinstance(equation, str):
        raise ValueError("needs an equation as its first argument")
    return build.add("torch.einsum", equation=equation.replace(" ", ""), operands=tuple(map(build.tensor, operands)))


def multiply_add(build: Builder, call: Call) -> Value:
    """torch.addcmul, which rounds once where `*` and `+` round twice."""
    given = arguments(call, "input tensor1 tensor2 value")
    if given.pop("value", 1) != 1:
        raise ValueError("value is not supported")
    return build.add("torch.addcmul", **{name: build.tensor(leaf) for name, leaf in given.items()})


ARITHMETIC = {
    **dict.fromkeys(_SYMBOLS, binary),
    **dict.fromkeys(("bernoulli", "bernoulli_"), bernoulli),
    "rand": uniform,
    **dict.fromkeys(("floor", "floor_"), floor),
    **dict.fromkeys(("pow", "__pow__", "pow_", "float_power"), power),
    **dict.fromkeys(("reciprocal", "reciprocal_"), reciprocal),
    **dict.fromkeys(("maximum", "minimum"), elementwise_max_or_min),
    **dict.fromkeys(("max", "min"), largest_or_smallest),
    **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__", "bmm", "mm"), product),
    "einsum": einsum,
    "addcmul": multiply_add,
}
