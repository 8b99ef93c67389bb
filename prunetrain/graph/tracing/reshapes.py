"""Reshapes, classified by what they do to the shape: the file names no size that it does not need.

`view(n, -1)` is a flatten, `view(n, heads, -1, h, w)` an unflatten, `view(n, c, 1, 1)` two new dimensions; anything else is a
torch.reshape with all its sizes.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from prunetrain.graph.layergraph import Operand
from prunetrain.graph.tracing.builder import Builder
from prunetrain.graph.tracing.calls import arguments
from prunetrain.graph.tracing.records import Call, Constant

Pair: TypeAlias = tuple[int, int]  # one size at both batch sizes
_ONE: Pair = (1, 1)


@dataclass(frozen=True)
class _Segment:
    """Dimensions of a shape that become others with as many elements: the sizes `old`, from dimension `start`, become `new`."""

    start: int
    old: list[Pair]
    new: list[Pair]

    def followed_by(self, after: "_Segment") -> bool:
        """Whether another segment follows directly, and both drop dimensions of size one, or both make some."""
        drop, make = not self.new and not after.new, not self.old and not after.old
        return (drop or make) and self.start + len(self.old) == after.start


def _columns(build: Builder, leaf: object) -> list[Pair]:
    first, second = build.sizes_of(leaf)
    return list(zip(first, second, strict=True))


def _times(sizes: list[Pair]) -> Pair:
    return prod(size[0] for size in sizes), prod(size[1] for size in sizes)


def reshape(build: Builder, call: Call) -> Operand:
    """Any call that only changes the shape."""
    return to_shape(build, build.tensor(call.arguments[0]), list(zip(*build.traced.sizes[call.results[0]], strict=True)), call.name)


def to_shape(build: Builder, tensor: Operand, wanted: list[Pair], name: str = "reshape") -> Operand:
    """Add steps that bring a tensor to a shape with as many elements, and return the result."""
    had = _columns(build, tensor)
    if had == wanted:
        return tensor
    if name != "squeeze" and len(had) > len(wanted):
        width = len(had) - len(wanted)
        starts = [start for start in (*range(1, len(wanted)), 0) if start + width < len(had)]
        for start in starts:
            if [*had[:start], _times(had[start : start + width + 1]), *had[start + width + 1 :]] == wanted:
                return _flatten(build, tensor, start, start + width)
    segments = _segments(had, wanted)
    if segments is None or any(len(segment.old) > 1 and len(segment.new) > 1 for segment in segments):
        return build.add("torch.reshape", input=tensor, shape=_sizes(build, wanted))
    for segment in reversed(segments):  # from behind, so that dimensions in front keep their numbers
        tensor = _reshaped(build, tensor, segment)
    return tensor


def _flatten(build: Builder, tensor: Operand, start: int, end: int) -> Operand:
    return build.add("torch.flatten", input=tensor, start_dim=start, end_dim=-1 if end == build.rank(tensor) - 1 else end)


def _reshaped(build: Builder, tensor: Operand, segment: _Segment) -> Operand:
    """Add steps that change one segment of a tensor's shape, and return the result."""
    start, old, new = segment.start, segment.old, segment.new
    if not new:
        dims = tuple(range(start, start + len(old)))
        return build.add("torch.squeeze", input=tensor, dim=dims)
    if not old:
        for _ in new:
            tensor = build.add("torch.unsqueeze", input=tensor, dim=start)
        return tensor
    if len(new) == 1:
        return _flatten(build, tensor, start, start + len(old) - 1)
    return build.add("torch.unflatten", input=tensor, dim=start, sizes=_sizes(build, new))


def _segments(had: list[Pair], wanted: list[Pair]) -> list[_Segment] | None:
    """Return where two shapes differ, from the front, or None if their numbers of elements differ.

    From (N, 64, 1, 1) to (N, 8, 8): 64 at dimension 1 becomes 8, 8, and the two ones from dimension 2 on become nothing.
    """
    found: list[_Segment] = []
    i = j = 0  # the next dimensions of `had` and of `wanted`
    while i < len(had) or j < len(wanted):
        if i < len(had) and j < len(wanted) and had[i] == wanted[j]:
            i, j = i + 1, j + 1
            continue
        start = i
        old, new = had[i : i + 1], wanted[j : j + 1]
        if old == [_ONE]:
            new = []
        elif new == [_ONE]:
            old = []
        i, j = i + len(old), j + len(new)
        while _times(old) != _times(new):
            if prod(_times(old)) < prod(_times(new)) and i < len(had):
                old, i = [*old, had[i]], i + 1
            elif j < len(wanted):
                new, j = [*new, wanted[j]], j + 1
            else:
                return None
        segment = _Segment(start, old, new)
        if found and found[-1].followed_by(segment):
            found[-1] = _Segment(found[-1].start, found[-1].old + old, found[-1].new + new)
        else:
            found.append(segment)
    return found


def _sizes(build: Builder, sizes: list[Pair]) -> tuple[Any, ...]:
    """Return sizes as they are written: the last one that depends on the batch is -1, others are those of a result with as many rows."""
    of_batch = [number for number, (one, two) in enumerate(sizes) if one != two]
    written: list[Any] = [one for one, _ in sizes]
    for number in of_batch[:-1]:
        written[number] = build.batch_dependent_size(sizes[number])
    if of_batch:
        written[of_batch[-1]] = -1
    return tuple(written)


def permute(build: Builder, call: Call) -> Operand:
    """Any call that only changes the order of dimensions, classified by the order that it makes."""
    tensor = build.tensor(call.arguments[0])
    rank = build.rank(tensor)
    order = _order(call, rank)
    moved = [dim for dim in range(rank) if order[dim] != dim]
    if not moved:
        return tensor
    if len(moved) == 2:
        return build.add("torch.transpose", input=tensor, dim0=moved[0], dim1=moved[1])
    return build.add("torch.permute", input=tensor, dims=tuple(order))


def _order(call: Call, rank: int) -> list[int]:
    _, *rest = call.arguments
    dims: list[Any] = [*rest, *call.keywords.values()]
    if call.name == "permute":
        dims = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], tuple) else dims
        return [dim % rank for dim in dims]
    order = list(range(rank))
    if call.name in ("T", "t"):
        return order[::-1]
    if call.name in ("mT", "adjoint"):
        dims = [-2, -1]
    if call.name in ("movedim", "moveaxis"):
        given = arguments(call, "input source destination")
        source, target = (
            tuple(dim % rank for dim in (one if isinstance(one, tuple) else (one,))) for one in (given["source"], given["destination"])
        )
        rest_of = iter(dim for dim in order if dim not in source)
        moved = dict(zip(target, source, strict=True))
        return [moved[dim] if dim in moved else next(rest_of) for dim in order]
    order[dims[0]], order[dims[1]] = order[dims[1]], order[dims[0]]
    return order


def expand(build: Builder, call: Call) -> Operand:
    """A tensor repeated along its dimensions of size 1."""
    return broadcast(build, build.tensor(call.arguments[0]), list(zip(*build.traced.sizes[call.results[0]], strict=True)))


def broadcast(build: Builder, tensor: Operand, wanted: list[Pair]) -> Operand:
    """Repeat a tensor along its dimensions of size 1, up to a shape."""
    had = _columns(build, tensor)
    if had == wanted:
        return tensor
    old = [_ONE] * (len(wanted) - len(had)) + had
    fresh = len(wanted) - len(had)
    sizes: list[Any] = []
    for number, (one, two) in enumerate(zip(old, wanted, strict=True)):
        if one == two and number >= fresh:
            sizes.append(-1)
        else:
            sizes.append(two[0] if two[0] == two[1] else build.batch_dependent_size(two))
    return build.add("torch.broadcast_to", input=tensor, size=tuple(sizes))


def repeat(build: Builder, call: Call) -> Operand:
    """Copies of a tensor side by side."""
    tensor = build.tensor(call.arguments[0])
    wanted = list(zip(*build.traced.sizes[call.results[0]], strict=True))
    had = _columns(build, tensor)
    tensor = to_shape(build, tensor, [_ONE] * (len(wanted) - len(had)) + had)
    had = _columns(build, tensor)
    for dim, (old, new) in enumerate(zip(had, wanted, strict=True)):
        if old not in (new, _ONE):
            if new[0] % old[0] or new[0] // old[0] != new[1] // old[1]:
                raise ValueError("the number of repeats depends on the batch size")
            tensor = build.add("torch.cat", tensors=(tensor,) * (new[0] // old[0]), dim=dim)
    return broadcast(build, tensor, wanted)


def repeat_interleave(build: Builder, call: Call) -> Operand:
    """Each index of a dimension several times in a row."""
    given = arguments(call, "input repeats dim output_size")
    tensor, repeats, dim = build.tensor(given["input"]), given["repeats"], given.get("dim")
    if type(repeats) is not int or dim is None:
        raise ValueError("needs a number of repeats and a dimension")
    dim %= build.rank(tensor)
    wide = build.add("torch.unsqueeze", input=tensor, dim=dim + 1)
    wanted = _columns(build, wide)
    wanted[dim + 1] = (repeats, repeats)
    return _flatten(build, broadcast(build, wide, wanted), dim, dim + 1)


def join(build: Builder, call: Call) -> Operand:
    """Tensors that are concatenated or stacked."""
    given = arguments(call, "tensors dim")
    leaves = [leaf for leaf in given["tensors"] if build.sizes_of(leaf)[0] != (0,)]
    dim = given.get("dim", 0)
    if call.name == "stack":
        return build.add("torch.stack", tensors=tuple(map(build.tensor, leaves)), dim=dim)
    if call.name in ("hstack", "vstack"):
        dim = 1 if call.name == "hstack" else 0
    dim %= build.rank(leaves[0])
    inner = [number for number, leaf in enumerate(leaves) if not _is_zeros(leaf)] if dim else []
    first, last = (inner[0], inner[-1] + 1) if inner else (0, len(leaves))
    tensors = tuple(map(build.tensor, leaves[first:last]))
    joined = tensors[0] if len(tensors) == 1 else build.add("torch.cat", tensors=tensors, dim=dim)
    before, after = (sum(build.sizes_of(leaf)[0][dim] for leaf in part) for part in (leaves[:first], leaves[last:]))
    rest = (0, 0) * (build.rank(leaves[0]) - 1 - dim)
    return build.add("F.pad", input=joined, pad=(*rest, before, after)) if before or after else joined


def _is_zeros(leaf: object) -> bool:
    """Whether a tensor is a constant of zeros: joined before or after others, it is padding."""
    return isinstance(leaf, Constant) and leaf.tensor.is_floating_point() and not leaf.tensor.is_meta and not leaf.tensor.any()


RESHAPES = {
    **dict.fromkeys(
        ("view", "reshape", "flatten", "unflatten", "squeeze", "squeeze_", "unsqueeze", "unsqueeze_", "view_as", "reshape_as", "ravel"),
        reshape,
    ),
    **dict.fromkeys(
        ("permute", "transpose", "movedim", "moveaxis", "T", "mT", "t", "swapaxes", "swapdims", "transpose_", "adjoint"), permute
    ),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys(("repeat", "tile"), repeat),
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys(("cat", "concat", "concatenate", "stack", "hstack", "vstack"), join),
}
