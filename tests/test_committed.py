"""The networks that are committed with their weights: both fit, and the digits' network is as good as docs/results.md says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunetrain.config import TrainConfig
from prunetrain.graph.load import load_network, read_graph
from prunetrain.training.data import load_data

EXAMPLES = Path(__file__).parent.parent / "generated_nets" / "examples"
WITH_WEIGHTS = sorted(EXAMPLES.rglob("*.safetensors"))


def load(weights: Path) -> torch.nn.Module:
    """The network in eval mode."""
    network = load_network(weights.with_suffix(".py"))
    network.load_state_dict(load_file(weights))
    return network.eval()


@pytest.mark.parametrize("weights", WITH_WEIGHTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_weights_fit_their_network(weights: Path) -> None:
    outputs = load(weights)(torch.rand(2, *read_graph(weights.with_suffix(".py")).input_shape))
    assert outputs.shape == (2, 10)
    assert torch.isfinite(outputs).all()


def test_digits() -> None:
    network = load(EXAMPLES / "resnet20-digits" / "epoch_040.safetensors")
    data = load_data(TrainConfig(dataset="digits"), torch.device("cpu"))
    right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in data.val_batches(90))
    assert right / 360 == pytest.approx(0.9917, abs=0.003)  # one image is 0.0028
