"""Where the tensors of a smaller network come from: which tensor of the larger one, and which rows of each dimension.

One description serves weights, buffers and everything an optimizer keeps per parameter. Gathering makes new tensors, never changes old
ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Source:
    """A tensor of the larger network, seen as `shape` if that is given, of which `rows[dim]` (int64) are kept in dimension dim."""

    name: str
    rows: Mapping[int, Tensor] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None

    def gather(self, tensor: Tensor) -> Tensor:
        """The kept part of a tensor of the source's shape; the tensor itself where all of it is kept."""
        if self.shape is not None:
            tensor = tensor.reshape(self.shape)
        for dim, rows in self.rows.items():
            if len(rows) < tensor.shape[dim]:
                tensor = tensor.index_select(dim, rows.to(tensor.device))
        return tensor


def chain(outer: Mapping[str, Source], inner: Mapping[str, Source]) -> dict[str, Source]:
    """Sources of `outer`, which names tensors of a network whose own sources are `inner`, in terms of the network behind `inner`.

    `inner` keeps all rows (it only drops, renames and reshapes).
    """
    return {name: Source(inner[s.name].name, s.rows, s.shape or inner[s.name].shape) for name, s in outer.items()}
