"""Where the tensors of a smaller network come from: which tensor of the larger one, and which rows of each dimension.

The same description serves weights, buffers and everything that an optimizer keeps per parameter. Gathering makes new tensors and never
changes old ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

NEW = ""
"""The source name of newly made tensors, which do not come from the larger network."""


@dataclass(frozen=True)
class Source:
    """A tensor of the larger network, seen as `shape` if that is given, of which `rows[dim]` (int64) are kept in dimension dim."""

    name: str
    rows: Mapping[int, Tensor] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the kept part of a tensor of the source's shape, or the tensor itself if all of it is kept."""
        if self.shape is not None:
            tensor = tensor.reshape(self.shape)
        for dim, rows in self.rows.items():
            if len(rows) < tensor.shape[dim] or not torch.equal(rows, torch.arange(len(rows))):
                tensor = tensor.index_select(dim, rows.to(tensor.device))
        return tensor


def chain(outer: Mapping[str, Source], inner: Mapping[str, Source]) -> dict[str, Source]:
    """Compose sources: `outer` refers to the tensors that `inner` describes, the result to the network that `inner` refers to."""
    return {name: _compose(source, inner.get(source.name, source)) for name, source in outer.items()}


def _compose(outer: Source, inner: Source) -> Source:
    if NEW in (outer.name, inner.name):
        return Source(NEW)
    assert outer.shape is None or not inner.rows or (outer.shape[0] == -1 and set(inner.rows) == {0})  # rows are of the first dimension
    rows = dict(inner.rows)
    for dim, kept in outer.rows.items():
        rows[dim] = rows[dim][kept] if dim in rows else kept
    return Source(inner.name, rows, outer.shape or inner.shape)
