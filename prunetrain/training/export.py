"""Networks for deployment: what `prunetrain export` does."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from prunetrain.channels.folding import count_batch_norms, fold_batch_norm, remove_training_heads
from prunetrain.errors import CheckpointError, ConfigError, OutputError, unknown_name
from prunetrain.extras import require
from prunetrain.files import check_overwrite, resolve_links
from prunetrain.graph.costs import Costs, costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.render import render
from prunetrain.sparse.storage import FileSizes, file_sizes
from prunetrain.training.export_formats import FORMATS, TOLERANCE, Exportable, Sample, outputs_of, relative_difference
from prunetrain.training.trained_network import TrainedNetwork, read_trained_network

BATCH_SIZES = (1, 3)  # tried with a file for any number of images


@dataclass(frozen=True)
class Folding:
    """How many of the BatchNorms were folded, and how far the outputs moved, relative to the largest of them."""

    folded: int
    of: int
    difference: float


@dataclass(frozen=True)
class Exported:
    """The files, their total size in bytes, and the costs of the network in them.

    `difference` is the largest difference between the file's outputs and the network's, relative to the largest output, on batches of
    `batch_sizes` random images; `engine` ran the file. `folding` is None if none was requested. `constant` says that every image had the
    same outputs, so that comparing them says little. `sizes` compares a file of sparse weights with other ways to store them.
    """

    files: tuple[Path, ...]
    size: int
    costs: Costs
    difference: float
    batch_sizes: tuple[int, ...]
    engine: str
    folding: Folding | None
    constant: bool
    sizes: FileSizes | None = None


def export_network(
    path: Path, output: Path, *, form: str = "", fold: bool = False, batch_size: int | None = None, force: bool = False
) -> Exported:
    """Write a network for inference, and check what was written.

    Args:
        path: a checkpoint of a run, or a network file with weights of the same stem beside it.
        output: the file to write; with safetensors and csr a network file is written beside it.
        form: one of `FORMATS`; taken from the file's name if empty.
        fold: fold every BatchNorm that can be folded.
        batch_size: the number of images at a time; any number if None.
        force: overwrite existing files.

    Raises:
        PruneTrainError: for a network that cannot be used, files that exist or cannot be written, or outputs that differ.
    """
    form = form or output.suffix[1:]
    if not form:
        raise ConfigError(f"{output} has no ending to name the format: choose from {', '.join(f'.{known}' for known in sorted(FORMATS))}")
    if form not in FORMATS:
        raise ConfigError(unknown_name("format", form, FORMATS))
    if output.suffix != f".{form}":
        raise ConfigError(f"{output}: a file of format {form} ends in .{form}")
    if batch_size is not None and not FORMATS[form].compiled:
        raise ConfigError(f"--batch-size is for onnx and pt2: the network file beside {output.name} takes any number of images")
    for module in FORMATS[form].imports:
        require(module, f"--format {form}")
    files = (output, output.with_suffix(".py")) if not FORMATS[form].compiled else (output,)
    check_overwrite(*files, force=force)
    trained = read_trained_network(path)
    for file in files:
        if resolve_links(file) in (resolve_links(trained.network), resolve_links(trained.weights)):
            raise ConfigError(f"{file} is the file to export: choose another name for the output")
    network = _exportable(trained, (batch_size,) if batch_size else BATCH_SIZES, fixed=batch_size is not None)
    folding = None
    if fold:
        trained, network, folding = _fold_batch_norms(trained, network)
    elif FORMATS[form].compiled and trained.graph.auxiliary:
        trained, network, _ = _replace_network(trained, network, *remove_training_heads(trained.graph, trained.state))
    difference = FORMATS[form].write(network, output)
    return Exported(
        files,
        sum(file.stat().st_size for file in files),
        costs(trained.graph),
        difference,
        tuple(len(sample.images) for sample in network.samples),
        FORMATS[form].engine,
        folding,
        _has_constant_outputs(network),
        file_sizes(trained.state) if form == "csr" else None,
    )


def _exportable(trained: TrainedNetwork, batch_sizes: tuple[int, ...], *, fixed: bool) -> Exportable:
    """The network with random images, drawn from the normal distribution, and its outputs for them.

    Raises:
        CheckpointError: if an output is not finite, since then nothing can be compared.
    """
    model = trained.build()
    samples = []
    for number, size in enumerate(batch_sizes):
        images = torch.randn(size, *trained.graph.input_shape, generator=torch.Generator().manual_seed(number))
        samples.append(Sample(images, outputs_of(model, images)))
        if not all(bool(output.isfinite().all()) for output in samples[-1].outputs):
            raise CheckpointError(f"{trained.weights}: the network's outputs are not finite numbers: export an earlier checkpoint")
    return Exportable(model, trained.source, tuple(samples), fixed, trained.metadata)


def _fold_batch_norms(trained: TrainedNetwork, network: Exportable) -> tuple[TrainedNetwork, Exportable, Folding]:
    """The network for inference, with every BatchNorm folded that can be.

    Raises:
        OutputError: if rounding moves its outputs too far.
    """
    graph, state = remove_training_heads(trained.graph, trained.state)
    before = count_batch_norms(graph)
    folded, network, difference = _replace_network(trained, network, *fold_batch_norm(graph, state))
    if difference > TOLERANCE:
        raise OutputError(
            f"nothing is written: folding BatchNorm moves the outputs by {difference:.2g} of the largest: leave --fold-bn out"
        )
    return folded, network, Folding(before - count_batch_norms(folded.graph), before, difference)


def _replace_network(
    trained: TrainedNetwork, network: Exportable, graph: LayerGraph, state: dict[str, Tensor]
) -> tuple[TrainedNetwork, Exportable, float]:
    """Replace a network by another; also return how far the outputs of the two are apart."""
    other = replace(trained, source=render(graph), graph=graph, state=state)
    model = other.build()
    samples = tuple(Sample(sample.images, outputs_of(model, sample.images)) for sample in network.samples)
    difference = max(relative_difference(was.outputs, now.outputs) for was, now in zip(network.samples, samples, strict=True))
    return other, replace(network, model=model, source=other.source, samples=samples), difference


def _has_constant_outputs(network: Exportable) -> bool:
    """Whether every image has the same outputs."""
    each = zip(*(sample.outputs for sample in network.samples), strict=True)
    rows = [torch.cat(outputs) for outputs in each]
    return len(rows[0]) > 1 and all(torch.equal(found, found[:1].expand_as(found)) for found in rows)
