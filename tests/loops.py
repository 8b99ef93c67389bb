"""Someone else's network and training loop, for the tests of `PruneTrain`."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from prunetrain import PruneTrain

EXAMPLE = torch.zeros(1, 2, 6, 6)
STEM_DEAD, INNER_DEAD = (1, 4), (0, 2)
STEM, INNER = [0, 2, 3, 5], [1, 3, 4]


class Block(nn.Module):
    """A residual block that adds its branch to what it got."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


class Nested(nn.Module):
    """Modules inside modules: a stem of 6 channels, a block with 5 inside, 3 classes, and a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.ModuleList([Block(6, 5)])
        self.idle = nn.Linear(2, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.body:
            x = block(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> Nested:
    """A network with random weights, biases and statistics, as after some training."""
    torch.manual_seed(seed)
    model = Nested().to(dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.1  # or the constant channels' noise would be divided by sqrt(1e-5)
                module.bias.copy_(torch.randn(len(module.bias)))
                module.running_var.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def kill_(model: nn.Module, stem: Iterable[int] = STEM_DEAD, inner: Iterable[int] = INNER_DEAD) -> None:
    """Make some channels of a `Nested` network zero in all layers that write or read them, as the lasso does."""
    stem, inner = list(stem), list(inner)
    parameters = dict(model.named_parameters())
    for name in ("stem.0.weight", "body.0.branch.3.weight"):
        parameters[name][stem] = 0
    for name in ("body.0.branch.0.weight", "head.weight"):
        parameters[name][:, stem] = 0
    parameters["body.0.branch.3.bias"][stem] = 0
    parameters["body.0.branch.0.weight"][inner] = 0
    parameters["body.0.branch.3.weight"][:, inner] = 0


KEPT = {  # flat name: its name in `Nested`, and what stays of each dimension
    "stem_0.weight": ("stem.0.weight", STEM, None),
    "stem_1.weight": ("stem.1.weight", STEM, None),
    "stem_1.bias": ("stem.1.bias", STEM, None),
    "body_0_branch_0.weight": ("body.0.branch.0.weight", INNER, STEM),
    "body_0_branch_1.weight": ("body.0.branch.1.weight", INNER, None),
    "body_0_branch_1.bias": ("body.0.branch.1.bias", INNER, None),
    "body_0_branch_3.weight": ("body.0.branch.3.weight", STEM, INNER),
    "body_0_branch_3.bias": ("body.0.branch.3.bias", STEM, None),
    "head.weight": ("head.weight", None, STEM),
    "head.bias": ("head.bias", None, None),
}


def kept_of(name: str, tensor: Tensor) -> Tensor:
    """What stays of a tensor of `Nested`, by its flat name, when the channels that `kill_` makes zero are cut."""
    _, rows, columns = KEPT[name]
    tensor = tensor if rows is None else tensor[rows]
    return tensor if columns is None else tensor[:, columns]


def batches(count: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 16 images with labels that can be learned."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        labels = torch.randint(3, (16,), generator=generator)
        images = torch.randn(16, 2, 6, 6, generator=generator, dtype=torch.float64)
        images[:, 0] += labels[:, None, None] - 1
        yield images.to(dtype), labels


def train_(model: nn.Module, optimizer: Optimizer, count: int = 1, *, seed: int = 0, pruner: PruneTrain | None = None) -> float:
    """Some steps of a plain loop; returns the last loss."""
    loss = torch.zeros(())
    dtype = next(model.parameters()).dtype
    for images, labels in batches(count, seed=seed, dtype=dtype):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if pruner is not None:
            pruner.regularize(loss)
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def sgd(model: nn.Module, **settings: float) -> Optimizer:
    """SGD with momentum over all parameters."""
    return SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, **settings})  # type: ignore[arg-type]


def logits(model: nn.Module, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """What a model says of some images in eval mode; its mode stays."""
    images, _ = next(batches(1, seed=99, dtype=dtype))
    mode = model.training
    with torch.no_grad():
        result: Tensor = model.eval()(images)
    model.train(mode)
    return result
