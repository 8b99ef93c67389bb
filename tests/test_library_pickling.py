"""Networks of files and of cuts as whole objects: saved by `torch.save`, sent to other processes, copied."""

import pickle
from collections.abc import Callable
from copy import copy, deepcopy
from io import BytesIO
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import EXAMPLE, kill_, logits, network, sgd
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import prunetrain
from prunetrain.errors import NetworkFileError
from prunetrain.graph import load


def after_a_cut(path: Path | None = None) -> nn.Module:
    model = network()
    kill_(model)
    return prunetrain.PruneTrain(model, sgd(model), EXAMPLE).reconfigure(path).model


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def doubling(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


@pytest.mark.parametrize(
    "through",
    [
        saved_and_loaded,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: pickle.loads(ForkingPickler.dumps(model)),
        lambda model: saved_and_loaded(saved_and_loaded(model)),
        lambda model: saved_and_loaded(deepcopy(model)),
        lambda model: saved_and_loaded(copy(model)),
        lambda model: saved_and_loaded(AveragedModel(model)).module,
    ],
)
def test_a_network_goes_through_pickle_as_it_is(through: Callable[[nn.Module], nn.Module]) -> None:
    model = after_a_cut()
    model.head.requires_grad_(False)
    model.stem_1.eval()
    model.register_forward_hook(doubling)
    model.note = "mine"
    loaded = through(model)
    assert (str(loaded), type(loaded).__qualname__, loaded.note) == (str(model), "Nested", "mine")
    assert [module.training for module in loaded.modules()] == [module.training for module in model.modules()]
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(logits(loaded), logits(model))


def test_copies_share_the_class_and_execute_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = after_a_cut()
    monkeypatch.setattr(load, "parse", None)
    assert type(deepcopy(model)) is type(model)


def test_a_network_of_a_file_goes_on_without_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    after_a_cut(path)
    model = prunetrain.load_network(path).double()
    assert "prunetrain" not in path.read_text().partition("import torch")[2]
    path.unlink()
    assert torch.equal(logits(saved_and_loaded(model)), logits(model))


def test_only_networks_run_when_a_pickle_is_read(tmp_path: Path) -> None:
    with pytest.raises(NetworkFileError):
        load.class_of(f"open({str(tmp_path / 'made')!r}, 'w')", "net.py")
    assert list(tmp_path.iterdir()) == []
