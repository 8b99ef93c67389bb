"""Networks in deployment formats: ONNX, torch.export, safetensors and compressed sparse rows.

In: a network in eval mode, images and its outputs for them. Out: a file that was loaded again and run on the images before it appeared
under its name, and how far its outputs were from the network's. No file contains a path of this machine, and the same network gives the
same bytes.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from math import inf, isnan
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from prunetrain.errors import ConfigError, OutputError
from prunetrain.extras import require
from prunetrain.files import write_atomically, write_text
from prunetrain.graph.load import instantiate
from prunetrain.sparse.storage import load_sparse, sparse_bytes

TOLERANCE: Final = 1e-4  # of the largest output, where another engine computes or BatchNorm is folded
ONNX_LIMIT: Final = 2**31 - 2**24  # bytes of weights; the file is one message of less than 2 GiB, which also holds the graph
METADATA: Final = "prunetrain"

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Sample:
    """Images (N, *input_shape), and the network's outputs for them in eval mode."""

    images: Tensor
    outputs: Outputs


@dataclass(frozen=True)
class Exportable:
    """A network in eval mode, float32, on the CPU; the text of its file; samples, which with `fixed_batch` all have the same N.

    `metadata`, JSON or empty, is written into the file under the key `METADATA`, except with csr.
    """

    model: nn.Module
    source: str
    samples: tuple[Sample, ...]
    fixed_batch: bool
    metadata: str = ""

    @property
    def keyed_metadata(self) -> dict[str, str]:
        """The metadata as the formats take it: under a single key, since safetensors writes several in varying order."""
        return {METADATA: self.metadata} if self.metadata else {}


@dataclass(frozen=True)
class Format:
    """A way to write a network.

    `write` returns the largest relative difference that it found. `imports` are the optional modules that it needs. `engine` runs the
    file. `compiled` says whether the file holds a program instead of a network file; only for a program can the batch size be fixed.
    """

    write: Callable[[Exportable, Path], float]
    imports: tuple[str, ...]
    engine: str
    compiled: bool = True


def outputs_of(model: nn.Module, images: Tensor) -> Outputs:
    """A network's outputs for images, as a tuple of one or more tensors."""
    with torch.no_grad():
        outputs = model(images)
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def relative_difference(expected: Outputs, found: Outputs) -> float:
    """The largest difference relative to the largest absolute value, for the output where this is worst; infinite if it is NaN."""
    worst = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        if not torch.equal(ours, theirs):
            share = float((ours - theirs).abs().max() / ours.abs().max())
            worst = inf if isnan(share) else max(worst, share)
    return worst


def write_onnx(network: Exportable, path: Path) -> float:
    """Write ONNX, with an input `images`, an output `logits` and the weights inside, and run it with onnxruntime.

    Raises:
        ConfigError: if torch cannot export the network, it is too large for one file, or onnxscript does not fit torch.
        OutputError: if the file cannot be written, or its outputs differ.
    """
    if sum(tensor.nbytes for tensor in network.model.state_dict().values()) > ONNX_LIMIT:
        raise ConfigError(f"{path}: the weights are too large for one ONNX file, which is limited to 2 GiB: use --format pt2")
    others = [f"output_{number}" for number in range(1, len(network.samples[0].outputs))]
    program = _program(network)
    try:
        with _quiet():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=["logits", *others],
                dynamic_shapes=None if network.fixed_batch else ({0: "batch"},),
                verbose=False,
            )
    except ImportError as error:  # torch asks for a module of onnxscript that is named for a version of torch
        pair = f"onnxscript {version('onnxscript')} does not work with torch {torch.__version__}"
        raise ConfigError(f"{pair} ({_first_line(error)}): pip install --upgrade onnxscript") from error
    assert converted is not None
    converted.model.metadata_props.update(network.keyed_metadata)
    content = converted.model_proto.SerializeToString()
    return _write_checked(network, path, content, load=_with_onnxruntime, tolerance=TOLERANCE)


def _with_onnxruntime(path: Path) -> Callable[[Tensor], Outputs]:
    onnxruntime = require("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))


def write_pt2(network: Exportable, path: Path) -> float:
    """Write a program of torch.export, which `torch.export.load(path).module()` runs.

    Raises:
        ConfigError: if torch cannot export the network.
        OutputError: if the file cannot be written, or its outputs differ.
    """
    buffer = io.BytesIO()  # torch's writer aborts the process if the disk is full
    torch.export.save(_program(network), buffer, extra_files=network.keyed_metadata)

    def load(path: Path) -> Callable[[Tensor], Outputs]:
        with _quiet(), path.open("rb") as file:  # torch 2.11 warns about its own way of reading the file
            module = torch.export.load(file).module()
        return lambda images: outputs_of(module, images)

    return _write_checked(network, path, buffer.getvalue(), load=load, tolerance=0)


def write_safetensors(network: Exportable, path: Path) -> float:
    """Write the weights as safetensors and the network file beside them, both or neither.

    Raises:
        OutputError: if the files cannot be written, or their outputs differ.
    """
    library = require("safetensors.torch", "safetensors")
    return _write_pair(network, path, library.save(network.model.state_dict(), network.keyed_metadata or None), library.load_file)


def write_csr(network: Exportable, path: Path) -> float:
    """Write the weights as compressed sparse rows where that is smaller, and the network file beside them, both or neither.

    Raises:
        OutputError: if the files cannot be written, or their outputs differ.
    """
    return _write_pair(network, path, sparse_bytes(network.model.state_dict()), load_sparse)


def _write_pair(network: Exportable, path: Path, content: bytes, read: Callable[[Path], dict[str, Tensor]]) -> float:
    """Write weights with the network file beside them; `read` loads the state dict from the file of weights."""
    beside = path.with_suffix(".py")

    def load(path: Path) -> Callable[[Tensor], Outputs]:
        model = instantiate(network.source, str(beside)).eval()
        model.load_state_dict(read(path))
        return lambda images: outputs_of(model, images)

    return _write_checked(network, path, content, load=load, tolerance=0, then=lambda: write_text(beside, network.source))


def _program(network: Exportable) -> ExportedProgram:
    """Export the network with torch.export, without the source locations of its steps."""
    example = torch.zeros_like(network.samples[0].images)
    if not network.fixed_batch:
        example = example[:1].repeat(2, *(1 for _ in example.shape[1:]))  # from one image torch would conclude that there is always one
    with _quiet(), torch.no_grad():
        program = torch.export.export(network.model, (example,), dynamic_shapes=None if network.fixed_batch else ({0: Dim("batch")},))
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress output and warnings; turn what torch refuses into a ConfigError."""
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except RuntimeError as error:
        raise ConfigError(f"torch cannot export this network: {_first_line(_first_cause(error))}") from error


def _first_cause(error: BaseException) -> BaseException:
    """What torch refused: its ONNX exporter wraps that in errors which name the phase and what a developer of torch would do."""
    while isinstance(error.__cause__, RuntimeError):
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _write_checked(
    network: Exportable,
    path: Path,
    content: bytes,
    *,
    load: Callable[[Path], Callable[[Tensor], Outputs]],
    tolerance: float,
    then: Callable[[], None] = lambda: None,
) -> float:
    """Write a file, load it and compare its outputs with the network's; it appears under its name after `then`, which may raise too."""
    found = inf

    def write_and_check(file: BinaryIO) -> None:
        nonlocal found
        file.write(content)
        file.flush()
        try:
            forward = load(Path(file.name))
            found = max(relative_difference(sample.outputs, forward(sample.images)) for sample in network.samples)
        except Exception as error:  # each engine has its own, and all mean that the file does not run
            raise OutputError(f"{path} is not written: it does not run ({_first_line(error)})") from error
        if found > tolerance:
            raise OutputError(f"{path} is not written: its outputs differ from torch's by {found:.1e} of the largest")
        then()

    write_atomically(path, write_and_check)
    return found


FORMATS: Final = {
    "csr": Format(write_csr, (), "torch", compiled=False),
    "onnx": Format(write_onnx, ("onnx", "onnxscript", "onnxruntime"), "onnxruntime"),
    "pt2": Format(write_pt2, (), "torch"),
    "safetensors": Format(write_safetensors, ("safetensors.torch",), "torch", compiled=False),
}
