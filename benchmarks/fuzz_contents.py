"""Damage to the content of a checkpoint: some value in it is replaced, and torch.save writes the result properly."""

import random
from pathlib import Path
from typing import Any

import torch
from fuzz_bytes import FLOATS, NUMBERS, WORDS
from torch import Tensor

_NOT_CHANGED = ("compile",)  # would start a compiler, which is legitimate


def spoil_content(rng: random.Random, path: Path) -> None:
    """Change one to three values in a file written by torch.save."""
    content = torch.load(path, weights_only=True)
    for _ in range(rng.choice((1, 1, 2, 3))):
        container, key = _somewhere(rng, content)
        if key not in _NOT_CHANGED:
            _change(rng, container, key)
    torch.save(content, path)


def _somewhere(rng: random.Random, content: Any) -> tuple[Any, Any]:
    """Pick a random place at any depth of the tree: a container, and a key in it."""
    container, key = content, rng.choice(list(content))
    while isinstance(container[key], dict | list) and container[key] and rng.random() < 0.8:
        container = container[key]
        key = rng.choice(list(container)) if isinstance(container, dict) else rng.randrange(len(container))
    return container, key


def _change(rng: random.Random, container: Any, key: Any) -> None:
    choice = rng.random()
    if choice < 0.1 and isinstance(container, dict):
        del container[key]
    elif choice < 0.2 and isinstance(container, dict):
        container[rng.choice((*WORDS[:-2], 3, 10**6))] = container[key]
    elif isinstance(container[key], Tensor) and _is_plain(container[key]) and rng.random() < 0.8:
        container[key] = _tensor(rng, container[key])
    else:
        container[key] = _value(rng)


def _value(rng: random.Random) -> Any:
    values: tuple[Any, ...] = (
        None,
        True,
        False,
        [],
        {},
        (),
        [[]],
        {"a": 1},
        {3: 4},
        torch.zeros(3),
        torch.zeros(()),
        [1] * 1000,
        list(WORDS[:3]),
    )
    return rng.choice((rng.choice(values), rng.choice(NUMBERS), rng.choice(FLOATS), rng.choice(WORDS)))


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has not been damaged yet in a way that most operations refuse."""
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_complex()


def _tensor(rng: random.Random, tensor: Tensor) -> Tensor:
    """A replacement for a tensor: of another type, shape or layout, or with numbers that are not finite."""
    changes = (
        tensor.double,
        tensor.half,
        lambda: tensor.to(torch.int32),
        tensor.bool,
        lambda: tensor.to(torch.complex64),
        tensor.flatten,
        lambda: tensor[None],
        lambda: tensor.reshape(-1)[:1].expand(tensor.shape or 3),
        lambda: tensor.reshape(-1)[:1].expand(10**12),
        lambda: torch.cat([tensor.reshape(1, -1)] * 2),
        lambda: torch.full_like(tensor, 1),
        lambda: tensor.float() * float("nan"),
        lambda: tensor.float() * 1e38,
        lambda: tensor.float().requires_grad_(),
        lambda: torch.nn.Parameter(tensor.float()),
        tensor.to_sparse,
        lambda: torch.empty(tensor.shape, device="meta"),
        lambda: tensor.mT if tensor.dim() > 1 else tensor,
        lambda: torch.zeros(0),
        lambda: tensor.new_zeros(3, 3),
    )
    changed: Tensor = rng.choice(changes)()
    return changed
