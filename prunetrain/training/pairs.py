"""A checkpoint together with the network file that it belongs to: neither means anything without the other.

In: a checkpoint's path. Out: a `Pair`, which becomes a network with weights; `write_pair` puts a new one on the disk.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from prunetrain.errors import CheckpointError
from prunetrain.files import write_text
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import sha256_of
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
from prunetrain.graph.shapes import infer_shapes
from prunetrain.models.assembling import assemble
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import Checkpoint, load_checkpoint, read_network_of, save_checkpoint


@dataclass(frozen=True)
class Pair:
    """What was read: of the checkpoint its path and content, of the network file its path, text and graph."""

    path: Path
    checkpoint: Checkpoint
    network: Path
    source: str
    graph: LayerGraph

    def build(self) -> nn.Module:
        """The network with the checkpoint's very tensors as its weights, on the CPU.

        Raises:
            CheckpointError: if the weights do not fit the network.
        """
        with weights_fitting(self.path, self.network):
            return assemble(self.source, str(self.network), self.graph, self.checkpoint.model, same_types=True)

    def check_data(self) -> None:
        """Check that what the checkpoint says of its data is of this network: a name of every output, statistics of every channel.

        Raises:
            CheckpointError: if there are more or fewer.
        """
        if len(self.checkpoint.statistics["mean"]) != self.graph.input_shape[0]:
            raise CheckpointError(f"{self.path}: damaged, it has no mean of each channel that {self.network} takes")
        if infer_shapes(self.graph)[self.graph.output.index][1:] != (len(self.checkpoint.class_names),):
            raise CheckpointError(f"{self.path}: damaged, it does not name as many classes as {self.network} has")


def read_pair(path: Path) -> Pair:
    """A checkpoint, read onto the CPU, and its network file.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged, or not prunetrain's.
        NetworkFileError: if the network file is missing, not the one that the checkpoint was written with, or holds anything but a network.
    """
    return pair_of(path, load_checkpoint(path))


def pair_of(path: Path, checkpoint: Checkpoint) -> Pair:
    """A checkpoint that was read before, and its network file; raises what `read_pair` does."""
    network, source = read_network_of(path, checkpoint)
    return Pair(path, checkpoint, network, source, parse(source, str(network)))


def write_pair(run: RunPaths, graph: LayerGraph, dense: LayerGraph, checkpoint: Checkpoint) -> Path:
    """Write the network file of an epoch, then the checkpoint that belongs to it; returns the checkpoint's path.

    Raises:
        OutputError: if one of the files cannot be written.
    """
    epoch = checkpoint.progress.epoch
    source = render(graph, dense=dense, epoch=epoch)
    network = run.network(epoch)
    write_text(network, source)
    save_checkpoint(run.checkpoint(epoch), replace(checkpoint, network=network.name, network_sha256=sha256_of(source)))
    return run.checkpoint(epoch)


@contextmanager
def weights_fitting(weights: Path, network: Path) -> Iterator[None]:
    """Around what puts the weights of one file into the network of another: says in one line what torch says in many.

    Raises:
        CheckpointError: if they do not fit.
    """
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        first = lines[min(1, len(lines) - 1)]  # torch's own first line names the class alone
        raise CheckpointError(f"{weights}: its weights do not fit {network}: {first}") from None
