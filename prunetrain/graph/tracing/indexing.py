"""Slices, indices and writes into them: one step for each dimension."""

from typing import Any

import torch

from prunetrain.graph.layergraph import Argument, Operand
from prunetrain.graph.tracing.builder import Builder
from prunetrain.graph.tracing.calls import arguments
from prunetrain.graph.tracing.records import BatchDependentInt, Call, Constant, ModelTensor, Ref
from prunetrain.graph.tracing.registry import are_positions
from prunetrain.graph.tracing.reshapes import broadcast, to_shape


def _index_per_dimension(index: object, rank: int) -> list[Any]:
    """Return an index as a list with an entry for every dimension, and for every new one."""
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    rest = [slice(None)] * (rank - taken)
    if Ellipsis in [part for part in parts if part is Ellipsis]:
        at = next(number for number, part in enumerate(parts) if part is Ellipsis)
        return [*parts[:at], *rest, *parts[at + 1 :]]
    return [*parts, *rest]


def slice_dimension(build: Builder, tensor: Operand, dim: int, part: slice) -> Operand:
    """Return a slice of one dimension, or the tensor itself if the slice is all of it."""
    sizes = [shape[dim] for shape in build.sizes_of(tensor)]
    bounds = [_bound(value, which) for which in (0, 1) for value in (part.start, part.stop, part.step)]
    ranges = [slice(*bounds[3 * which : 3 * which + 3]).indices(sizes[which]) for which in (0, 1)]
    if all(found == (0, size, 1) for found, size in zip(ranges, sizes, strict=True)):
        return tensor
    start, stop = part.start, part.stop
    if isinstance(stop, BatchDependentInt) or (isinstance(stop, int) and stop >= sizes[0]):
        if any(found[1] < size for found, size in zip(ranges, sizes, strict=True)):
            raise ValueError("takes a slice that depends on the batch size")
        stop = None
    return build.add("[:]", input=tensor, dim=dim, start=start or 0, stop=stop, step=part.step or 1)


def _bound(value: object, which: int) -> Any:
    return value.sizes[which] if isinstance(value, BatchDependentInt) else value


def getitem(build: Builder, call: Call) -> Operand:
    """An index with slices, numbers, None and one tensor of positions."""
    tensor, index = build.tensor(call.arguments[0]), call.arguments[1]
    parts = [_positions(part) for part in index] if isinstance(index, tuple) else [index]
    if any(isinstance(part, Ref | ModelTensor | Constant) for part in parts):
        return _gather(build, tensor, _index_per_dimension(tuple(parts), build.rank(tensor)))
    dim = 0
    for part in _index_per_dimension(index, build.rank(tensor)):
        if part is None:
            tensor = build.add("torch.unsqueeze", input=tensor, dim=dim)
        elif isinstance(part, slice):
            tensor = slice_dimension(build, tensor, dim, part)
        elif isinstance(part, int) and not isinstance(part, bool):
            tensor = build.add("[]", input=tensor, dim=dim, index=part)
            continue
        else:
            raise ValueError("this index is not supported: use slices, whole numbers, None or one int64 tensor")
        dim += 1
    return tensor


def _positions(part: object) -> object:
    """A list of positions as a constant."""
    return Constant(torch.tensor(part)) if isinstance(part, tuple) and part else part


def _gather(build: Builder, tensor: Operand, index: list[Any]) -> Operand:
    places = [number for number, part in enumerate(index) if isinstance(part, Ref | ModelTensor | Constant)]
    if len(places) != 1 or any(part != slice(None) for number, part in enumerate(index) if number != places[0]):
        raise ValueError("an index with a tensor and anything else is not supported: index one dimension at a time")
    (dim,) = places
    leaf = index[dim]
    if not build.is_integer(leaf):
        raise ValueError("only an int64 tensor can be an index: with a mask the result's shape depends on the values of a tensor")
    if dim == 0 and build.rank(tensor) == 2:
        known = build.registry.tensors[leaf.name] if isinstance(leaf, ModelTensor) else getattr(leaf, "tensor", None)
        if known is not None and not known.is_meta and bool((known < 0).any()):
            raise ValueError("negative positions in a table are not supported: add its length to them")
        return build.add("F.embedding", input=build.tensor(leaf), weight=tensor)
    return select(build, tensor, dim, leaf)


def select(build: Builder, tensor: Operand, dim: int, leaf: object) -> Operand:
    """Take positions along a dimension."""
    taken = build.add("torch.index_select", input=tensor, dim=dim, index=_index(build, tensor, dim, leaf))
    shape = build.sizes_of(leaf)[0]
    if len(shape) == 1:
        return taken
    had = list(zip(*build.sizes_of(tensor), strict=True))
    return to_shape(build, taken, [*had[:dim], *((size, size) for size in shape), *had[dim + 1 :]])


def _index(build: Builder, tensor: Operand, dim: int, leaf: object) -> Operand:
    """Return positions along a dimension as a list of them, which the file spells out: they are architecture."""
    if isinstance(leaf, ModelTensor):
        if are_positions(build.registry.tensors[leaf.name]):
            return build.registry.declare_tensor(leaf.name, build.place, positions=True)
        leaf = Constant(build.registry.tensors[leaf.name])
    if not isinstance(leaf, Constant) or leaf.repeated or leaf.tensor.is_meta:
        raise ValueError("takes positions that are computed: use constants, or a buffer as it is")
    one, two = (sizes[dim] for sizes in build.sizes_of(tensor))
    positions = leaf.tensor.flatten()
    if one == two:
        positions = torch.where(positions < 0, positions + one, positions)  # -1 is the last one
    return build.registry.declare_constant(positions, build.place, positions=True)


def index_select(build: Builder, call: Call) -> Operand:
    """torch.index_select."""
    given = arguments(call, "input dim index")
    return select(build, build.tensor(given["input"]), given["dim"], given["index"])


def index_add(build: Builder, call: Call) -> Operand:
    """torch.index_add."""
    given = arguments(call, "input dim index source alpha")
    if given.get("alpha", 1) != 1:
        raise ValueError("alpha is not supported: multiply the source by it")
    tensor, source = build.tensor(given["input"]), build.tensor(given["source"])
    index = _index(build, tensor, given["dim"], given["index"])
    return build.add("torch.index_add", input=tensor, dim=given["dim"], index=index, source=source)


def embedding(build: Builder, call: Call) -> Operand:
    """F.embedding."""
    given = arguments(call, "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse")
    if (
        given.get("padding_idx") not in (None, -1)
        or given.get("max_norm") is not None
        or given.get("scale_grad_by_freq")
        or given.get("sparse")
    ):
        raise ValueError("these arguments are not supported")
    return build.add("F.embedding", input=build.tensor(given["input"]), weight=build.tensor(given["weight"]))


def setitem(build: Builder, call: Call) -> Operand:
    """A write to a part: a new tensor with the part replaced."""
    whole, index, source = call.arguments
    parts = [build.tensor(whole)]
    cuts: list[tuple[int, slice]] = []
    for dim, part in enumerate(_index_per_dimension(index, build.rank(whole))):
        if not isinstance(part, slice | int) or isinstance(part, bool):
            raise ValueError("writes to an index that is not supported: use slices and whole numbers")
        span = slice(part, part + 1 or None) if isinstance(part, int) else part
        smaller = slice_dimension(build, parts[-1], dim, span)
        if smaller != parts[-1]:
            parts.append(smaller)
            cuts.append((dim, span))
    made = _value_to_write(build, parts[-1], source)
    for (dim, part), larger in zip(reversed(cuts), reversed(parts[:-1]), strict=True):
        made = build.add("torch.slice_scatter", input=larger, src=made, dim=dim, start=part.start, end=part.stop, step=part.step or 1)
    return made


def _value_to_write(build: Builder, part: Operand, source: object) -> Operand:
    """Return what is written, in the shape of the part that it is written to."""
    if not isinstance(source, Ref | ModelTensor | Constant):
        zeros = build.add("torch.zeros_like", input=part)
        return build.add("+", input=zeros, other=build.operand(source)) if source else zeros
    tensor = build.tensor(source)
    wanted = list(zip(*build.sizes_of(part), strict=True))
    if len(wanted) > build.rank(tensor) and build.sizes_of(tensor)[0] == tuple(one for one, _ in wanted if one != 1):
        return to_shape(build, tensor, wanted)
    return broadcast(build, tensor, wanted)


def fill(build: Builder, call: Call) -> Operand:
    """A tensor filled with one number."""
    given = arguments(call, "input value")
    return _value_to_write(build, build.tensor(given["input"]), given.get("value", 0))


def zeros(build: Builder, call: Call) -> Operand:
    """zeros_like, where the recorder did not make a constant of it."""
    return build.add("torch.zeros_like", input=build.tensor(call.arguments[0]))


def narrow(build: Builder, call: Call) -> Operand:
    """A slice by its start and length."""
    given = arguments(call, "input dim start length")
    return slice_dimension(
        build,
        build.tensor(given["input"]),
        given["dim"] % build.rank(given["input"]),
        slice(given["start"], given["start"] + given["length"]),
    )


def select_index(build: Builder, call: Call) -> Operand:
    """One index of a dimension."""
    given = arguments(call, "input dim index")
    return build.add("[]", input=build.tensor(given["input"]), dim=given["dim"] % build.rank(given["input"]), index=given["index"])


def unbind(build: Builder, call: Call) -> tuple[Argument, ...]:
    """Every index of a dimension, as in unpacking."""
    given = arguments(call, "input dim")
    tensor, dim = build.tensor(given["input"]), given.get("dim", 0) % build.rank(given["input"])
    return tuple(build.add("[]", input=tensor, dim=dim, index=number) for number in range(len(call.results)))


def split(build: Builder, call: Call) -> tuple[Argument, ...]:
    """Any split of a tensor: one slice for each part, of the size that torch made."""
    tensor = build.tensor(call.arguments[0])
    given: dict[str, Any] = arguments(call, "input sections dim") if len(call.arguments) > 1 else dict(call.keywords)
    dim = given.get("dim", 0) % build.rank(tensor)
    parts, start = [], 0
    for number in call.results:
        one, two = (shape[dim] for shape in build.traced.sizes[number])
        if one != two:
            raise ValueError("splits a dimension that depends on the batch size")
        parts.append(slice_dimension(build, tensor, dim, slice(start, start + one, None)))
        start += one
    return tuple(parts)


def glu(build: Builder, call: Call) -> Operand:
    """F.glu: the first half of a dimension, times the sigmoid of the second."""
    given = arguments(call, "input dim")
    tensor = build.tensor(given["input"])
    dim = given.get("dim", -1) % build.rank(tensor)
    half, other = (shape[dim] for shape in build.traced.sizes[call.results[0]])
    if half != other:
        raise ValueError("splits a dimension that depends on the batch size")
    first, second = (slice_dimension(build, tensor, dim, slice(start, start + half, None)) for start in (0, half))
    return build.add("*", input=first, other=build.add("torch.sigmoid", input=second))


INDEXING = {
    "__getitem__": getitem,
    "index_select": index_select,
    "index_add": index_add,
    "embedding": embedding,
    "__setitem__": setitem,
    **dict.fromkeys(("zero_", "fill_"), fill),
    "narrow": narrow,
    "select": select_index,
    "unbind": unbind,
    "glu": glu,
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"), split),
}
