"""What the recorder writes down: calls of torch, with stand-ins for the tensors that they read."""

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from torch import Tensor

from prunetrain.errors import TraceError
from prunetrain.graph.layergraph import Layer
from prunetrain.graph.windows import Shape

BATCH_SIZES: Final = (7, 12)  # the batch sizes of a trace: no common divisor, one odd and one even, and neither is 1


@dataclass(frozen=True)
class Ref:
    """A recorded result; 0 is the network's input."""

    index: int


@dataclass(frozen=True)
class ModelTensor:
    """A parameter or buffer of the model, by its qualified name."""

    name: str


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that depends on no input, parameter or buffer; `repeated` if it is one row that is repeated for each image."""

    tensor: Tensor
    repeated: bool = False


@dataclass(frozen=True)
class BatchDependentTensor:
    """A tensor that depends only on the batch size, in a way that a network file cannot express."""


@dataclass(frozen=True)
class CalledLayer:
    """A layer of the model by its qualified name, and the layer of the file that it is when called, still without a name there."""

    name: str
    layer: Layer


@dataclass(frozen=True)
class BatchDependentInt:
    """A whole number that differs between the two batch sizes of a trace."""

    sizes: tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Where a call is: file and line of the model's own code, and the module that ran it."""

    line: str
    scope: str

    def error(self, message: str) -> TraceError:
        """Return a TraceError with a one-line message that starts with the place."""
        where = self.line or (f"module {self.scope}" if self.scope else "the model")
        return TraceError(f"{where}: {message}")


@dataclass(frozen=True)
class Call:
    """One call: torch's short name of the function, its arguments, and the numbers of the results."""

    name: str
    arguments: tuple[object, ...]
    keywords: dict[str, object]
    results: tuple[int, ...]
    place: Place


Sizes: TypeAlias = tuple[Shape, Shape]  # a shape at each of the two batch sizes


@dataclass
class Recording:
    """One run of the forward pass: calls in order, the shape of every result, what forward returned, and whether it asked for a size."""

    shapes: list[Shape]
    calls: list[Call] = field(default_factory=list)
    outputs: tuple[object, ...] = ()
    integers: set[int] = field(default_factory=set)
    reads_sizes: bool = False


@dataclass(frozen=True)
class PairedRecording:
    """Two runs in one mode that differ in the batch size only: `sizes[i]` are the shapes of result i; `integers` are the int64 results."""

    training: bool
    calls: tuple[Call, ...]
    sizes: tuple[Sizes, ...]
    outputs: tuple[object, ...]
    integers: frozenset[int] = frozenset()
