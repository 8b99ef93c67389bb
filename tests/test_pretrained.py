"""`--weights pretrained`: the weights that torchvision and timm have of a network, out of the folders in which they keep downloads."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from datafiles import good_arrays, write_npz
from runs import Recorder, settings
from torch import Tensor
from torchvision import models as torchvision_models

from prunetrain.errors import ConfigError
from prunetrain.models import build, build_with_weights, pretrained
from prunetrain.training.run import resume_run, start_run

SHAPE = (3, 64, 64)


def downloaded(name: str, folder: Path) -> dict[str, Tensor]:
    """Pretend that torch.hub has downloaded a network's weights; these are freshly drawn."""
    torch.manual_seed(1)
    arguments = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    state: dict[str, Tensor] = torchvision_models.get_model(name, **arguments).state_dict()
    url = torchvision_models.get_model_weights(name).DEFAULT.url
    path = folder / "hub" / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return state


def built(spec: str, classes: int) -> tuple[dict[str, Tensor], list[str]]:
    """The network's tensors, and what was said."""
    lines: list[str] = []
    network = build_with_weights(spec, pretrained(spec, SHAPE), input_shape=SHAPE, num_classes=classes, seed=0, say=lines.append)
    return network.state_dict(), lines


@pytest.mark.parametrize("classes", [7, 1000])
def test_all_is_taken_but_a_head_of_other_classes(classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    there = downloaded("squeezenet1_1", tmp_path)
    found, lines = built("torchvision:squeezenet1_1", classes)
    head = [] if classes == 1000 else ["classifier.1.weight", "classifier.1.bias"]
    assert [name for name, tensor in found.items() if tensor.shape != there[name].shape or not torch.equal(tensor, there[name])] == head
    assert lines[0] == f"weights: {52 - len(head)} of the network's 52 tensors are in torchvision's SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert len(lines) == (1 if classes == 1000 else 2)
    if head:  # drawn as without the weights
        torch.manual_seed(0)
        fresh = build("torchvision:squeezenet1_1", input_shape=SHAPE, num_classes=classes).state_dict()
        assert all(torch.equal(found[name], fresh[name]) for name in head)


def test_what_the_weights_ask_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GoogLeNet's were trained on other means and deviations, to which it then turns the images itself."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    downloaded("googlenet", tmp_path)
    shaped = {"input_shape": SHAPE, "num_classes": 7, "seed": 0, "say": lambda line: None}
    known = pretrained("torchvision:googlenet", SHAPE)
    assert build_with_weights("torchvision:googlenet", known, **shaped).transform_input is True
    given = {"model_args": {"transform_input": False}}
    assert build_with_weights("torchvision:googlenet", known, **shaped, **given).transform_input is False
    assert build_with_weights("torchvision:googlenet", "", **shaped).transform_input is False


def test_a_run_begins_with_them_and_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    there = downloaded("squeezenet1_1", tmp_path / "torch")
    images = Path(write_npz(tmp_path / "a.npz", good_arrays(32, 32, 3)))
    config = settings(
        images, tmp_path, model="torchvision:squeezenet1_1", weights="pretrained", epochs=1, penalty_ratio=0.0, lr=0.0, batch_size=40
    )
    run = start_run(config, Recorder()).run
    saved = torch.load(run.last, weights_only=True)
    assert torch.equal(saved["model"]["features_0.weight"], there["features.0.weight"])
    assert saved["config"]["weights"] == "pretrained"
    assert saved["statistics"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # not the data's own
    (tmp_path / "torch").rename(tmp_path / "gone")
    assert resume_run(run.last, {"epochs": 2}, Recorder()).finished


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet20", "resnet20 has no pretrained weights: use torchvision:NAME, timm:NAME, or --weights FILE"),
        ("resnet18", "resnet18 has no pretrained weights: use torchvision:resnet18, or --weights FILE"),
        ("net.py:Net", "net.py:Net has no pretrained weights: use torchvision:NAME, timm:NAME, or --weights FILE"),
        ("torchvision:resnet17", "unknown torchvision model 'resnet17': did you mean resnet1"),
    ],
)
def test_what_has_none(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(spec, 7)
    assert str(caught.value).startswith(message)


def test_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(ConfigError) as caught:
        built("torchvision:resnet18", 7)
    assert str(caught.value) == (
        "torchvision:resnet18: its pretrained weights cannot be loaded (URLError: <urlopen error no route>): "
        "check the connection, or give a file with --weights FILE"
    )


def test_timms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of the hub's cache, with no connection: first convs of other channels fit, and heads are drawn."""
    timm = pytest.importorskip("timm", reason="timm is an optional extra and not installed")
    safetensors = pytest.importorskip("safetensors.torch", reason="comes with timm")
    constants = pytest.importorskip("huggingface_hub.constants", reason="comes with timm")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    state = timm.create_model("test_resnet").state_dict()
    snapshot = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    safetensors.save_file(state, snapshot / "model.safetensors")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    grey = pretrained("timm:test_resnet", (1, 64, 64))
    torch.testing.assert_close(grey.tensors["conv1.0.weight"], state["conv1.0.weight"].sum(1, keepdim=True))  # all colours together
    with pytest.raises(ConfigError, match=r"^timm:test_vit: its pretrained weights cannot be loaded \("):
        pretrained("timm:test_vit", SHAPE)
    images = Path(write_npz(tmp_path / "a.npz", good_arrays(64, 64, 3)))
    listener = Recorder()
    config = settings(images, tmp_path, model="timm:test_resnet", weights="pretrained", epochs=1, penalty_ratio=0.0, lr=0.0, batch_size=40)
    saved = torch.load(start_run(config, listener).run.last, weights_only=True)
    assert listener.messages[0].endswith(" tensors are in timm's test_resnet.r160_in1k")
    assert listener.messages[1].startswith("  of another shape, newly initialised: fc.weight (saved as 1000x")
    assert torch.equal(saved["model"]["layer1_0_conv1.weight"], state["layer1.0.conv1.weight"])
    assert saved["statistics"] == {"mean": [0.5] * 3, "std": [0.5] * 3}  # as timm trained them, not the data's own
