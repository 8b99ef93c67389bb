"""Exported files as others use them: in processes of their own, with nothing but torch, or by onnxruntime; and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from datafiles import folder_settings
from datafiles import write_images as write_folder
from graphs import Sketch
from runs import RESNET, Recorder, invoke, largest_file, settings, write_images
from torch import Tensor

from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import load_network, read_graph
from prunetrain.graph.render import render
from prunetrain.paths import RunPaths
from prunetrain.report.tables import format_count
from prunetrain.sparse.storage import load_sparse
from prunetrain.training import export_formats
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.run import start_run

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")

BITWISE = "reloaded by torch, the outputs are bit for bit the same"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A ResNet-20 that was cut in training, in channels-last memory."""
    folder = tmp_path_factory.mktemp("run")
    config = settings(write_images(folder / "images.npz"), folder, **RESNET | {"epochs": 2}, name="x", channels_last=True)
    start_run(config, Recorder())
    return RunPaths(folder, "x")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(run: RunPaths, images: Tensor) -> Tensor:
    """What the run's last network makes of the images."""
    return outputs(run.newest_network(), load_checkpoint(run.last).model, images)


@pytest.fixture
def lenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network file with its weights beside it, where commands run."""
    monkeypatch.chdir(tmp_path)
    exported("flatten", "lenet-300-100", "-o", "lenet.py", "--input-shape", "1,8,8", "--num-classes", "4")
    return Path("lenet.py")


def outputs(network: Path, state: dict[str, Tensor], images: Tensor) -> Tensor:
    model = load_network(network).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        result: Tensor = model(images)
    return result


def exported(*args: str | Path) -> str:
    """What a command prints: one line."""
    result = invoke(*args)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    return result.stdout.rstrip("\n")


def in_another_process(folder: Path, images: Tensor, code: str) -> Tensor:
    """What `code` makes of `images` in a process that starts in a folder and knows nothing of prunetrain."""
    torch.save(images, folder / "images.pt")
    program = (
        f"import sys; import torch; images = torch.load('images.pt')\nwith torch.no_grad():\n    {code}\n"
        "torch.save(outputs, 'outputs.pt'); print([name for name in sys.modules if 'prunetrain' in name])"
    )
    warned = ["-W", "error", "-W", "ignore:The given buffer is not writable:UserWarning"]  # torch 2.11 about how itself reads pt2
    done = subprocess.run([sys.executable, *warned, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    result: Tensor = torch.load(folder / "outputs.pt")
    return result


def test_onnx(run: RunPaths, images: Tensor, expected: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    line = exported("export", run.last, "-o", path, "--format", "onnx")
    cost = costs(read_graph(run.newest_network()))
    numbers = f"{format_count(path.stat().st_size)}B, {format_count(cost.macs)} MACs, {format_count(cost.params)} parameters"
    assert line.startswith(f"{path}: {numbers}; onnxruntime differs")
    found = re.search(r"differs from torch by (\S+) of the largest output \(random images, batches of 1 and 3\)$", line)
    assert found
    assert 0 < float(found[1]) < 1e-5
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    (wanted,), (made,) = session.get_inputs(), session.get_outputs()
    assert (wanted.name, wanted.shape, made.name, made.shape) == ("images", ["batch", 1, 8, 8], "logits", ["batch", 4])
    for number in (1, 5):
        (result,) = session.run(None, {"images": images[:number].numpy()})
        torch.testing.assert_close(torch.from_numpy(result), expected[:number], rtol=1e-4, atol=1e-5)


def test_pt2(run: RunPaths, images: Tensor, tmp_path: Path) -> None:
    assert BITWISE in exported("export", run.last, "-o", tmp_path / "net.pt2")
    code = "net = torch.export.load('net.pt2').module(); outputs = torch.cat([net(images[:1]), net(images[1:])])"
    state = load_checkpoint(run.last).model
    expected = [outputs(run.newest_network(), state, batch) for batch in (images[:1], images[1:])]  # bits may depend on the batch
    assert torch.equal(in_another_process(tmp_path, images, code), torch.cat(expected))


def test_safetensors(run: RunPaths, images: Tensor, expected: Tensor, tmp_path: Path) -> None:
    line = exported("export", run.last, "-o", tmp_path / "net.safetensors")
    assert line.startswith(f"{tmp_path}/net.safetensors and {tmp_path}/net.py: ")
    assert BITWISE in line
    assert (tmp_path / "net.py").read_bytes() == run.newest_network().read_bytes()
    code = "from net import ResNet20; from safetensors.torch import load_file\n    model = ResNet20().eval(); "
    code += "model.load_state_dict(load_file('net.safetensors')); outputs = model(images)"
    assert torch.equal(in_another_process(tmp_path, images, code), expected)


def test_folded(run: RunPaths, images: Tensor, expected: Tensor, tmp_path: Path) -> None:
    norms = sum(layer.kind == "BatchNorm2d" for layer in read_graph(run.newest_network()).layers)
    lines = {form: exported("export", run.last, "-o", tmp_path / f"net.{form}", "--fold-bn") for form in ("pt2", "safetensors", "onnx")}
    for line in lines.values():
        found = re.search(rf"; {norms} of {norms} BatchNorms folded, which moves outputs by (\S+); ", line)
        assert found
        assert 0 < float(found[1]) < 1e-5
    graph = read_graph(tmp_path / "net.py")
    assert f"{format_count(costs(graph).params)} parameters" in lines["safetensors"]
    assert {layer.kind for layer in graph.layers} == {"Conv2d", "Linear"}
    state = safetensors.load_file(tmp_path / "net.safetensors")
    folded = outputs(tmp_path / "net.py", state, images)
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(torch.export.load(tmp_path / "net.pt2").module()(images), folded)
    (result,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), expected, rtol=1e-4, atol=1e-5)


def test_files_say_what_the_network_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the data, which may be on another machine."""
    monkeypatch.chdir(tmp_path)
    config = settings(tmp_path, tmp_path, **folder_settings(write_folder(tmp_path / "images")), epochs=1, name="x")
    last = start_run(config, Recorder()).run.last
    shutil.rmtree("images")
    exported("export", last, "-o", "net.onnx")
    exported("export", last, "-o", "net.safetensors", "--fold-bn")
    exported("export", last, "-o", "net.pt2")
    extra = {"prunetrain": ""}
    torch.export.load("net.pt2", extra_files=extra)
    found = [
        onnxruntime.InferenceSession("net.onnx").get_modelmeta().custom_metadata_map["prunetrain"],
        safetensors.safe_open("net.safetensors", "pt").metadata()["prunetrain"],
        extra["prunetrain"],
    ]
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    expected = {"input_shape": [3, 8, 8], "channels": "RGB", **imagenet, "resize": 8, "crop": 8, "class_names": ["cat", "dog"]}
    assert [json.loads(text) for text in found] == [expected] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statistics": {"mean": [0.5] * 3, "std": [0.5] * 3}}, "damaged, it does not have a mean for each channel that "),
        ({"class_names": ["cat", "dog"]}, "damaged, it does not name as many classes as "),
    ],
    ids=["statistics", "class_names"],
)
def test_what_is_not_of_the_network_is_not_written(change: dict[str, Any], message: str, run: RunPaths, tmp_path: Path) -> None:
    for folder in (run.networks, run.checkpoints):
        shutil.copytree(folder, tmp_path / folder.parent.name / folder.name)
    last = tmp_path / run.last.relative_to(run.output_dir)
    torch.save(torch.load(last, weights_only=True) | change, last)
    result = invoke("export", last, "-o", tmp_path / "net.safetensors")
    assert (result.exit_code, message in result.stderr) == (2, True)
    assert not (tmp_path / "net.safetensors").exists()


def test_a_network_file_knows_nothing_of_its_data(lenet: Path) -> None:
    exported("export", lenet, "-o", "net.safetensors")
    assert safetensors.safe_open("net.safetensors", "pt").metadata() is None


def test_no_batch_norm_to_fold(lenet: Path) -> None:
    assert "; no BatchNorm to fold; reloaded" in exported("export", lenet, "-o", "net.pt2", "--fold-bn")


def test_network_file_with_weights_beside_it(lenet: Path) -> None:
    exported("export", lenet, "-o", "deep/again.safetensors")
    exported("export", "deep/again.py", "-o", "third.safetensors")
    first, third = torch.load("lenet.pt"), safetensors.load_file("third.safetensors")
    assert first.keys() == third.keys()
    assert all(torch.equal(first[name], third[name]) for name in first)
    assert Path("third.py").read_bytes() == lenet.read_bytes()


def test_fixed_batch(lenet: Path) -> None:
    images = torch.randn(4, 1, 8, 8)
    expected = outputs(lenet, torch.load("lenet.pt"), images)
    assert "batches of 4)" in exported("export", lenet, "-o", "net.onnx", "--batch-size", "4")
    session = onnxruntime.InferenceSession("net.onnx")
    assert session.get_inputs()[0].shape == [4, 1, 8, 8]
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), expected, rtol=1e-4, atol=1e-5)
    exported("export", lenet, "-o", "net.pt2", "--batch-size", "4")
    module = torch.export.load("net.pt2").module()
    assert torch.equal(module(images), expected)
    with pytest.raises((RuntimeError, AssertionError)):
        module(images[:3])


@pytest.mark.parametrize("form", ["onnx", "pt2", "safetensors"])
def test_same_bytes_anywhere(form: str, lenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported("export", lenet, "-o", f"one.{form}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    exported("export", tmp_path / "lenet.py", "-o", tmp_path / f"two.{form}")
    content = (tmp_path / f"one.{form}").read_bytes()
    assert content == (tmp_path / f"two.{form}").read_bytes()
    for folder in (str(tmp_path), "site-packages", "lenet.py"):
        assert folder.encode() not in content


def test_several_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that returns features beside its logits, and one more result in training."""
    monkeypatch.chdir(tmp_path)
    net = Sketch("Net", (1, 8, 8))
    features = net.conv_bn_relu("1", net.x, 4, kernel_size=3)
    auxiliary = net.classifier("auxiliary", features, 3)
    logits = net.classifier("fc", features, 2)
    graph = LayerGraph("Net", (1, 8, 8), tuple(net.layers.values()), tuple(net.steps), logits, extra=(features,), auxiliary=(auxiliary,))
    Path("net.py").write_text(render(graph))
    torch.save(load_network("net.py").state_dict(), "net.pt")
    exported("export", "net.py", "-o", "net.onnx")
    session = onnxruntime.InferenceSession("net.onnx")
    assert [(made.name, made.shape) for made in session.get_outputs()] == [("logits", ["batch", 2]), ("output_1", ["batch", 4, 6, 6])]
    assert exported("export", "net.py", "-o", "net.pt2").split("; ")[0].endswith(f", {format_count(36 + 4 * 2 + 8 + 2)} parameters")
    assert not [name for name in torch.export.load("net.pt2").state_dict if "auxiliary" in name]
    for form in ("pt2", "safetensors"):
        assert "1 of 1 BatchNorms folded" in exported("export", "net.py", "-o", f"folded.{form}", "--fold-bn")
    images = torch.ones(1, 1, 8, 8)
    module = torch.export.load("folded.pt2").module()
    assert [tuple(output.shape) for output in module(images)] == [(1, 2), (1, 4, 6, 6)]
    exported("export", "net.py", "-o", "as_it_is.safetensors")
    assert Path("as_it_is.py").read_text() == Path("net.py").read_text()


def test_says_that_all_outputs_are_the_same(lenet: Path) -> None:
    state = torch.load("lenet.pt")
    torch.save(state | {"fc3.weight": torch.zeros_like(state["fc3.weight"])}, "lenet.pt")
    assert exported("export", lenet, "-o", "net.safetensors").endswith("; but all images have the same outputs, so the check says little")


def test_sparse_weights_beside_their_network_file(lenet: Path, images: Tensor) -> None:
    """Weights of which a tenth is left take less than a third of the room, and give the same outputs."""
    state = {name: tensor.masked_fill(torch.rand_like(tensor) < 0.9, 0) for name, tensor in torch.load("lenet.pt").items()}
    torch.save(state, "lenet.pt")
    line = exported("export", lenet, "-o", "net.csr")
    assert BITWISE in line
    assert re.search(r"weights [\d.]+ KB, dense [\d.]+ KB, dense and compressed [\d.]+ KB, csr and compressed [\d.]+ KB", line)
    assert Path("net.csr").stat().st_size < Path("lenet.pt").stat().st_size / 3
    read = load_sparse(Path("net.csr"))
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    assert torch.equal(outputs(Path("net.py"), read, images), outputs(lenet, state, images))


# What is refused.


def refusal(*args: str | Path) -> str:
    """The line that a command ends with. It writes nothing."""
    before = {path: path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}
    result = invoke(*args)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert {path: path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()} == before
    return result.stderr.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("lenet.py", "-o", "net.tflite"), "unknown format 'tflite': choose from csr, onnx, pt2, safetensors"),
        (("lenet.py", "-o", "net.onnx", "--format", "onx"), "unknown format 'onx': did you mean onnx?"),
        (("lenet.py", "-o", "net.onnx", "--format", "pt2"), "net.onnx: a file of format pt2 ends in .pt2"),
        (("lenet.py", "-o", "net"), "net has no ending to name the format: choose from .csr, .onnx, .pt2, .safetensors"),
        (
            ("lenet.py", "-o", "net.safetensors", "--batch-size", "2"),
            "--batch-size is for onnx and pt2: the network file beside net.safetensors takes any number of images",
        ),
        (("lenet.onnx", "-o", "net.pt2"), "lenet.onnx is neither a checkpoint (.pt) nor a network file (.py): name one of these"),
        (("none.py", "-o", "net.pt2"), "none.py: no such network file"),
        (("none.pt", "-o", "net.pt2"), "none.pt: no such checkpoint"),
        (("lenet.pt", "-o", "net.pt2"), "lenet.pt: not a checkpoint of prunetrain"),
        ((".", "-o", "net.pt2"), ". is a folder: name a checkpoint in it, such as lenet.pt"),
        (("lenet.py", "-o", "lenet.safetensors"), "lenet.py already exists: choose another name, or pass --force"),
        (("lenet.py", "-o", "lenet.safetensors", "--force"), "lenet.py is the file to export: choose another name for the output"),
    ],
)
def test_refuses(args: tuple[str, ...], message: str, lenet: Path) -> None:
    assert refusal("export", *args) == message


def test_writes_over_files_only_with_force(lenet: Path) -> None:
    Path("net.pt2").write_text("mine")
    assert refusal("export", lenet, "-o", "net.pt2") == "net.pt2 already exists: choose another name, or pass --force"
    exported("export", lenet, "-o", "net.pt2", "--force")
    assert torch.export.load("net.pt2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing", "lenet.pt: damaged"),
        ([1, 2], "lenet.pt: holds no state dict"),
        ({"fc1.weight": "x"}, "lenet.pt: holds no state dict"),
        ({"fc1.weight": torch.zeros(2)}, "lenet.pt: its weights do not fit lenet.py: Missing key(s) in state_dict: "),
        ("half", "lenet.pt: its weights are torch.float16: save them as float32"),
        ("nan", "lenet.pt: the network's outputs are not finite numbers: export an earlier checkpoint"),
    ],
)
def test_refuses_weights(content: Any, message: str, lenet: Path) -> None:
    weights = Path("lenet.pt")
    state = torch.load(weights)
    if isinstance(content, bytes):
        weights.write_bytes(content)
    elif content == "half":
        torch.save({name: tensor.half() for name, tensor in state.items()}, weights)
    elif content == "nan":
        state["fc3.bias"][1] = torch.nan
        torch.save(state, weights)
    else:
        torch.save(content, weights)
    assert refusal("export", lenet, "-o", "net.pt2").startswith(message)


def test_refuses_no_weights_and_two(lenet: Path) -> None:
    safetensors.save_file(torch.load("lenet.pt"), "lenet.safetensors")
    assert refusal("export", lenet, "-o", "net.pt2") == "lenet.pt and lenet.safetensors are both there: leave one of them beside lenet.py"
    for name in ("lenet.pt", "lenet.safetensors"):
        Path(name).unlink()
    expected = "lenet.py has no weights beside it (lenet.pt or lenet.safetensors): name a run's checkpoint"
    assert refusal("export", lenet, "-o", "net.pt2") == expected
    Path("lenet.safetensors").write_bytes(b"nothing")
    assert refusal("export", lenet, "-o", "net.pt2").startswith("lenet.safetensors: damaged")


@pytest.mark.parametrize(
    ("form", "package"), [("onnx", "onnx"), ("onnx", "onnxscript"), ("onnx", "onnxruntime"), ("safetensors", "safetensors")]
)
def test_says_how_to_install(form: str, package: str, lenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    message = refusal("export", lenet, "-o", f"net.{form}")
    assert message == f"--format {form} needs {package}, which is not installed: pip install 'prunetrain[export]', or pip install {package}"


@pytest.mark.parametrize("form", ["onnx", "pt2", "safetensors"])
def test_a_file_that_differs_does_not_stay(form: str, lenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that change between the network's outputs and the writing of the file."""
    right = export_formats.FORMATS[form].write

    def wrong(network: export_formats.Exportable, path: Path) -> float:
        with torch.no_grad():
            network.model.get_parameter("fc3.bias").add_(0.01)
        return right(network, path)

    monkeypatch.setitem(export_formats.FORMATS, form, export_formats.Format(wrong, (), ""))
    Path(f"net.{form}").write_text("mine")
    message = refusal("export", lenet, "-o", f"net.{form}", "--force")
    found = re.fullmatch(rf"net.{form} is not written: its outputs differ from torch's by (\S+) of the largest", message)
    assert found
    assert float(found[1]) > 1e-4


def test_folding_that_moves_the_outputs_is_refused(run: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs around a million have lost their digits before BatchNorm takes the million away; the folded layer keeps them."""
    monkeypatch.chdir(tmp_path)
    state = load_checkpoint(run.last).model
    state["bn1.running_mean"] += 1e6
    torch.save(state, "net.pt")
    source = run.newest_network().read_text().replace("padding=1, bias=False)", "padding=1)", 1)
    Path("net.py").write_text(source)
    torch.save(state | {"conv1.bias": torch.full_like(state["bn1.bias"], 1e6)}, "net.pt")
    message = refusal("export", "net.py", "-o", "net.pt2", "--fold-bn")
    assert re.fullmatch(r"nothing is written: folding BatchNorm moves the outputs by \S+ of the largest: leave --fold-bn out", message)


@pytest.mark.parametrize("form", ["onnx", "pt2", "safetensors"])
def test_full_disk_leaves_nothing(form: str, lenet: Path) -> None:
    with largest_file(20_000):
        assert refusal("export", lenet, "-o", f"net.{form}") == f"cannot write net.{form}: file too large"


def test_too_large_for_onnx(lenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_formats, "ONNX_LIMIT", 4 * sum(tensor.numel() for tensor in torch.load("lenet.pt").values()) - 1)
    assert "too large for one ONNX file" in refusal("export", lenet, "-o", "net.onnx")


def test_what_torch_refuses(lenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        print("progress")
        raise RuntimeError("\n  no such operation\nand 100 lines")

    monkeypatch.setattr(torch.export, "export", refuse)
    assert refusal("export", lenet, "-o", "net.pt2") == "torch cannot export this network: no such operation"


def test_what_onnx_lacks_is_named(lenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch does for `adaptive_max_pool2d` to several rows: the cause is two errors below the one that arrives."""

    def refuse(*args: object, **kwargs: object) -> None:
        try:
            try:
                raise RuntimeError("No ONNX function found for aten.adaptive_max_pool2d")
            except RuntimeError as error:
                raise RuntimeError("Error when translating a node") from error
        except RuntimeError as error:
            raise RuntimeError("Failed to convert. \x1b[96mThis is step 3/3\x1b[0m. Next steps:\n- debug it") from error

    monkeypatch.setattr(torch.onnx, "export", refuse)
    message = refusal("export", lenet, "-o", "net.onnx")
    assert message == "torch cannot export this network: No ONNX function found for aten.adaptive_max_pool2d"


def test_an_onnxscript_that_is_too_old_is_named(lenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript.torch_2_11'")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    assert refusal("export", lenet, "-o", "net.onnx") == (
        f"onnxscript {version('onnxscript')} does not work with torch {torch.__version__} "
        "(No module named 'onnxscript.torch_2_11'): pip install --upgrade onnxscript"
    )


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        ([[1.0, -4.0]], [[1.0, -4.0]], 0),
        ([[1.0, -4.0]], [[1.5, -4.0]], 0.125),
        ([[1.0, -4.0], [8.0]], [[1.5, -4.0], [4.0]], 0.5),
        ([[0.0, 0.0]], [[0.0, 0.0]], 0),
        ([[0.0, 0.0]], [[0.0, 1e-9]], float("inf")),
        ([[1.0, 1.0]], [[1.0, float("nan")]], float("inf")),
    ],
)
def test_relative_difference(expected: list[list[float]], found: list[list[float]], difference: float) -> None:
    assert export_formats.relative_difference(tuple(map(torch.tensor, expected)), tuple(map(torch.tensor, found))) == difference
