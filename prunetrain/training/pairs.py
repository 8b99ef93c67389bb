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
from prunetrain.graph.load import read_source, sha256_of
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
from prunetrain.graph.shapes import infer_shapes
from prunetrain.models.assembling import assemble
from prunetrain.paths import RunPaths, run_of_checkpoint
from prunetrain.training.checkpoints import Checkpoint, load_checkpoint, read_network_of, save_checkpoint


@dataclass(frozen=True)
class Pair:
    """A checkpoint's path and content, and its network file's path, text and graph."""

    path: Path
    checkpoint: Checkpoint
    network: Path
    source: str
    graph: LayerGraph

    def read_dense_source(self) -> str:
        """Read the text of the run's dense network; if the run has lost that file, the network's own counts.

        Raises:
            NetworkFileError: if the file cannot be read.
        """
        dense = run_of_checkpoint(self.path).network(0)
        return read_source(dense) if dense.exists() else self.source

    def build(self) -> nn.Module:
        """Build the network, with the checkpoint's own tensors as its weights, on the CPU.

        Raises:
            CheckpointError: if the weights do not fit the network.
        """
        with weights_fitting(self.path, self.network):
            return assemble(self.source, str(self.network), self.graph, self.checkpoint.model, same_types=True)

    def check_data(self) -> None:
        """Check that the checkpoint describes data for this network: a class name for every output, statistics for every channel.

        Raises:
            CheckpointError: if there are more or fewer.
        """
        if len(self.checkpoint.statistics["mean"]) != self.graph.input_shape[0]:
            raise CheckpointError(f"{self.path}: damaged, it does not have a mean for each channel that {self.network} takes")
        if infer_shapes(self.graph)[self.graph.output.index][1:] != (len(self.checkpoint.class_names),):
            raise CheckpointError(f"{self.path}: damaged, it does not name as many classes as {self.network} has")


def read_pair(path: Path) -> Pair:
    """Read a checkpoint, onto the CPU, and its network file.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged, or not one of prunetrain.
        NetworkFileError: if the network file is missing, not the one that the checkpoint was written with, or holds anything but a network.
    """
    return pair_of(path, load_checkpoint(path))


def pair_of(path: Path, checkpoint: Checkpoint) -> Pair:
    """Pair a checkpoint that was read before with its network file; raises what `read_pair` does."""
    network, source = read_network_of(path, checkpoint)
    return Pair(path, checkpoint, network, source, parse(source, str(network)))


def write_pair(run: RunPaths, graph: LayerGraph, dense: LayerGraph, checkpoint: Checkpoint) -> Path:
    """Write the network file of an epoch, then the checkpoint that belongs to it; return the checkpoint's path.

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
    """Report in one line, where torch takes many, that the weights of one file do not fit the network of another.

    Raises:
        CheckpointError: if they do not fit.
    """
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        first = lines[min(1, len(lines) - 1)]  # torch's own first line only names the class
        raise CheckpointError(f"{weights}: its weights do not fit {network}: {first}") from None
