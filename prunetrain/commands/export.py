"""`prunetrain export`: a network for deployment."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunetrain.commands.options import resolve_checkpoint

if TYPE_CHECKING:
    from prunetrain.training.export import Exported


@click.command("export")
@click.argument("what", metavar="CKPT|NET|RUN", type=click.Path(path_type=Path), callback=resolve_checkpoint)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write; its ending names the format.")
@click.option("--format", "form", default="", metavar="[onnx|pt2|safetensors|csr]", help="Format of the file.  [default: by its ending]")
@click.option("--fold-bn", is_flag=True, help="Fold BatchNorm into the conv or linear layer before it.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), metavar="N", help="Fix the batch size to N images (onnx, pt2).  [default: any number]"
)
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def command(*, what: Path, output: Path, form: str, fold_bn: bool, batch_size: int | None, force: bool) -> None:
    """Write a trained network for inference, reload the file and compare its outputs with torch's.

    CKPT is a checkpoint; NET is a network file with its weights beside it, as .pt or .safetensors; RUN is the name of a run in this folder,
    which stands for its last.pt. Formats: onnx; pt2, for torch.export.load; safetensors, with the network file beside it; csr (compressed
    sparse rows, for weights that are mostly zero), also with the network file.

    When exported from a checkpoint, onnx, pt2 and safetensors files also hold the class names and the scaling of images, as JSON under the
    key prunetrain.
    """
    from prunetrain.training.export import export_network

    click.echo(summary(export_network(what, output, form=form, fold=fold_bn, batch_size=batch_size, force=force)))


def summary(done: "Exported") -> str:
    """One line: files, size, costs, what was folded, and the result of the check."""
    from prunetrain.report.tables import format_count

    size, macs, params = _size(done.size), format_count(done.costs.macs), format_count(done.costs.params)
    parts = [f"{' and '.join(map(str, done.files))}: {size}, {macs} MACs, {params} parameters"]
    if done.folding and done.folding.of:
        parts.append(f"{done.folding.folded} of {done.folding.of} BatchNorms folded, which moves outputs by {done.folding.difference:.1e}")
    elif done.folding:
        parts.append("no BatchNorm to fold")
    batches = f"(random images, batches of {' and '.join(map(str, done.batch_sizes))})"
    if done.difference:
        parts.append(f"{done.engine} differs from torch by {done.difference:.1e} of the largest output {batches}")
    else:
        parts.append(f"reloaded by {done.engine}, the outputs are bit for bit the same {batches}")
    if done.sizes:
        others = (("dense", done.sizes.dense), ("dense and compressed", done.sizes.dense_zlib), ("csr and compressed", done.sizes.csr_zlib))
        parts.append(f"weights {_size(done.sizes.csr)}, " + ", ".join(f"{name} {_size(size)}" for name, size in others))
    if done.constant:
        parts.append("but all images have the same outputs, so the check says little")
    return "; ".join(parts)


def _size(size: int) -> str:
    """A size in bytes for reading: 1.14 MB, 69 bytes."""
    from prunetrain.report.tables import format_count

    return f"{format_count(size)}B" if size >= 1000 else f"{size} bytes"
