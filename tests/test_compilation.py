"""`--compile`: which mode reaches torch, and what is freed after a cut. On a CPU no CUDA graph is ever made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunetrain.config import build_config
from prunetrain.training import memory
from prunetrain.training.compilation import compiled, forget_compiled
from prunetrain.training.run import start_run
from tests.runs import Recorder, settings, write_images


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What torch.compile was asked for, call by call; the networks are run as they are."""
    calls: list[dict[str, Any]] = []

    def compile_(network: nn.Module, **how: Any) -> nn.Module:
        calls.append(how)
        return network

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"])
def test_modes_reach_torch(mode: str, asked: list[dict[str, Any]]) -> None:
    compiled(nn.Identity(), mode)
    assert asked == [{"dynamic": False, "mode": mode}]
    assert mode in torch._inductor.list_mode_options()


def test_off_is_the_network_itself(asked: list[dict[str, Any]]) -> None:
    network = nn.Identity()
    assert compiled(network, "off") is network
    assert not asked


def test_a_run_compiles_in_its_mode(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    images = write_images(tmp_path / "images.npz")
    start_run(settings(images, tmp_path, epochs=1, compile="reduce-overhead"), Recorder())
    assert {how["mode"] for how in asked} == {"reduce-overhead"}


@pytest.mark.parametrize(("value", "mode"), [(True, "default"), (False, "off"), ("max-autotune", "max-autotune")])
def test_files_may_say_true_or_false(value: object, mode: str) -> None:
    assert build_config({"compile": value}).compile == mode


@pytest.mark.parametrize(("mode", "resets"), [("off", 0), ("reduce-overhead", 1)])
def test_what_was_compiled_is_freed_with_the_network(mode: str, resets: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before the allocator gives memory back, since CUDA graphs hold some."""
    done: list[str] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: done.append("reset"))
    forget_compiled(mode)
    assert done == ["reset"] * resets
    done.clear()
    monkeypatch.setattr(memory, "is_measured", lambda state: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty"))
    state = type("State", (), {"config": settings(tmp_path / "x.npz", tmp_path, compile=mode)})()
    memory.release_memory(state)
    assert done == ["reset"] * resets + ["empty"]
