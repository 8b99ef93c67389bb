"""An average of the weights is cut along with the network that it averages."""

import copy

import pytest
import torch
from loops import EXAMPLE, KEPT, Nested, kept_of, kill_, logits, network, sgd, train_
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from prunetrain import PruneTrain
from prunetrain.errors import ConfigError


def averaged(model: nn.Module, *, use_buffers: bool = False) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_average_is_cut_and_goes_on(use_buffers: bool) -> None:
    model = network()
    optimizer = sgd(model)
    ema = averaged(model, use_buffers=use_buffers)
    pruner = PruneTrain(model, optimizer, EXAMPLE, ema=ema)
    for seed in range(3):
        train_(model, optimizer, seed=seed)
        ema.update_parameters(model)
    kill_(model)
    kill_(ema.module)
    before = {name: tensor.clone() for name, tensor in ema.module.state_dict().items()}
    expected = logits(ema)
    step = pruner.reconfigure()
    assert step.ema is ema
    assert (logits(ema) - expected).abs().max() <= 1e-10 * expected.abs().max()
    for name, parameter in ema.module.named_parameters():
        assert torch.equal(parameter, kept_of(name, before[KEPT[name][0]])), name
    assert int(ema.n_averaged) == 3
    weight, averages = step.model.get_parameter("head.weight"), ema.module.get_parameter("head.weight")
    assert not torch.equal(weight, averages)
    train_(step.model, optimizer)
    wanted = 0.9 * averages + 0.1 * weight.detach()
    ema.update_parameters(step.model)
    assert torch.allclose(averages, wanted, rtol=1e-12)
    kill_again = pruner.reconfigure()  # names are those of the network file by now
    assert kill_again.ema is ema


def test_plain_copy_comes_back_as_a_new_network() -> None:
    model = network()
    ema = copy.deepcopy(model).float().requires_grad_(False).eval()
    old = copy.deepcopy(ema.state_dict())
    pruner = PruneTrain(model, sgd(model), EXAMPLE, ema=ema)
    kill_(model)
    step = pruner.reconfigure()
    assert step.ema is not None and step.ema is not ema
    assert not step.ema.training
    assert {(p.dtype, p.requires_grad) for p in step.ema.parameters()} == {(torch.float32, False)}
    assert step.model.training and step.model.get_parameter("head.weight").requires_grad
    for name, parameter in step.ema.named_parameters():
        assert torch.equal(parameter, kept_of(name, old[KEPT[name][0]])), name
    assert pruner.reconfigure().ema is step.ema  # nothing more is cut


class Masked(nn.Module):
    """A network with buffers that know no difference: infinities, and truth values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(4, 3)
        self.register_buffer("low", torch.tensor([0.0, -torch.inf, 0.0, -torch.inf]).view(1, 4, 1, 1).double())
        self.register_buffer("seen", torch.tensor([True, False, True, True]).view(1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.maximum(self.conv(x), self.get_buffer("low")) * self.get_buffer("seen")
        return self.head(x.mean((2, 3)))


def test_buffers_that_cannot_be_subtracted() -> None:
    model = Masked().double()
    ema = averaged(model, use_buffers=False)
    with torch.no_grad():
        model.head.weight[:, 1] = 0
        ema.module.head.weight[:, 1] = 0
    expected = logits(ema)
    step = PruneTrain(model, sgd(model), EXAMPLE, ema=ema).reconfigure()
    assert step.change.channels == (7, 6)
    assert (logits(ema) - expected).abs().max() <= 1e-10 * expected.abs().max()
    for name in ("low", "seen"):
        assert torch.equal(ema.module.get_buffer(name), step.model.get_buffer(name))


class Absorbing(nn.Module):
    """A channel whose filter is dead is a constant that the next layer's live weights use; a cut moves it into that layer's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.head = nn.Linear(3 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(torch.relu(self.conv(x)), 1))


def test_average_takes_over_what_the_network_absorbs() -> None:
    torch.manual_seed(0)
    model = Absorbing().double()
    with torch.no_grad():
        model.conv.weight[1] = 0
        model.conv.bias[1] = 0.75
    ema = averaged(model)
    with torch.no_grad():
        for parameter in ema.module.parameters():
            parameter.add_(1e-3)  # the average is elsewhere
        ema.module.conv.weight[1] = 0
        ema.module.conv.bias[1] = 0.75
    expected = logits(ema)
    bias = ema.module.head.bias.detach().clone()
    step = PruneTrain(model, sgd(model), EXAMPLE, ema=ema).reconfigure()
    assert step.change.channels == (6, 5)
    moved = model.head.weight.detach()[:, 36:72].sum(1) * 0.75
    assert torch.allclose(ema.module.get_parameter("head.bias"), bias + moved, rtol=1e-12)
    assert moved.abs().max() > 0.05
    assert (logits(ema) - expected).abs().max() < 36 * 0.75 * 1.1e-3  # what the average's own weights would have absorbed


def test_average_of_another_model() -> None:
    model = network()
    with pytest.raises(ConfigError, match=r"the ema, a Linear, holds no copy of the model"):
        PruneTrain(model, sgd(model), EXAMPLE, ema=nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"the ema, a AveragedModel, holds no copy"):
        PruneTrain(model, sgd(model), EXAMPLE, ema=averaged(nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match=r"OrderedDict is not a torch.nn.Module"):
        PruneTrain(model, sgd(model), EXAMPLE, ema=model.state_dict())  # type: ignore[arg-type]


def test_average_of_a_compiled_model() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    ema = averaged(compiled)
    optimizer = sgd(model)
    pruner = PruneTrain(compiled, optimizer, EXAMPLE, ema=ema)
    ema.update_parameters(compiled)
    kill_(model)
    step = pruner.reconfigure()
    ema.update_parameters(step.model)
    assert len(list(ema.parameters())) == len(KEPT)
    assert logits(ema).shape == (16, 3)
    assert isinstance(model, Nested)
