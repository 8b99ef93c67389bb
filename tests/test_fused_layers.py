"""Which group lasso uses Triton kernels; and the kernels themselves, as far as that takes no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from graphs import residual
from runs import settings, write_images
from test_group_lasso import weights_of
from torch import nn

import prunetrain
from prunetrain.channels.spaces import find_spaces
from prunetrain.library import pruner
from prunetrain.library.wrapping import Wrapping
from prunetrain.paths import RunPaths
from prunetrain.regularizers import fused_layers
from prunetrain.regularizers.fused_layers import kernels_work
from prunetrain.regularizers.group_lasso import GroupLasso
from prunetrain.training import lasso
from prunetrain.training.creation import new_state
from prunetrain.training.data import load_data
from prunetrain.training.distribution import Ranks
from prunetrain.training.environment import Environment

pytest.importorskip("triton", reason="torch comes with Triton on Linux only")

CPU = torch.device("cpu")


def test_the_kernels_do_what_torch_does() -> None:
    file = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """Down to machine code, as it takes no GPU; with warnings as errors."""
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from prunetrain.regularizers import triton_kernels as kernels
from prunetrain.regularizers.fused_layers import _OPTIONS

types = {"layers": "*i64", "rows": "*i32", "columns": "*i32", "sums": "*fp32", "numbers": "*fp32", "gradients": "*i64"}
scaling = [(kernels.scale_filters, [product, 1024]) for product in (True, False)]
for kernel, sizes in ((kernels.sum_filters, [1024]), (kernels.sum_inputs, [64, 32]), *scaling):
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    constants = dict(zip([(place,) for place, name in enumerate(kernel.arg_names) if name not in types], sizes, strict=True))
    for target in (GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)):
        built = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=constants), target=target, options=dict(_OPTIONS))
        print(kernel.__name__, target.arch, len(built.asm["cubin" if target.backend == "cuda" else "hsaco"]) > 1000)
"""
    environment = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = [f"{kernel} {arch} True" for kernel in ("sum_filters", "sum_inputs", *["scale_filters"] * 2) for arch in (90, "gfx942")]
    assert done.stdout.splitlines() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_proximal_step_on_a_gpu() -> None:
    gpu = torch.device("cuda", torch.cuda.current_device())
    assert kernels_work(gpu)
    graph = residual()
    fused, plain = ({name: weight.to(gpu) for name, weight in weights_of(graph).items()} for _ in range(2))
    with_kernels, without = (GroupLasso(graph, find_spaces(graph), weights, groups="coupled") for weights in (fused, plain))
    with_kernels.use_kernels()
    with_kernels.shrink_(0.3)
    without.shrink_(0.3)
    assert all(torch.allclose(weight, plain[name], rtol=1e-5, atol=1e-7) for name, weight in fused.items())


def test_kernels_are_tried_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    untried = kernels_work.__wrapped__
    assert not untried(CPU)
    monkeypatch.setattr(fused_layers, "_agree_with_torch", lambda device: True)
    assert untried(gpu)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not untried(gpu)


def test_kernels_that_fail_or_differ_are_not_used_and_a_warning_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)

    def fail(device: torch.device) -> bool:
        raise RuntimeError("Failed to find C compiler.\nPlease specify")

    monkeypatch.setattr(fused_layers, "_agree_with_torch", fail)
    with pytest.warns(UserWarning, match=r"do not work on cuda:0 \(RuntimeError: Failed to find C compiler\.\): the group lasso uses"):
        assert not kernels_work.__wrapped__(gpu)
    monkeypatch.setattr(fused_layers, "_agree_with_torch", lambda device: False)
    with pytest.warns(UserWarning, match="their results differ from torch's"):
        assert not kernels_work.__wrapped__(gpu)


@pytest.mark.parametrize(("share", "used"), [(1.0, True), (0.5, False)])
def test_all_ranks_of_a_run_use_the_kernels_or_none(share: float, used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_images(tmp_path / "images.npz", train=64, val=32)
    config = settings(data, tmp_path, penalty_ratio=0.5)
    monkeypatch.setattr(lasso, "kernels_work", lambda device: True)
    monkeypatch.setattr(fused_layers, "kernels_work", lambda device: True)
    monkeypatch.setattr(Ranks, "mean", lambda ranks, number, device: number * share)
    source = load_data(config, CPU)
    state = new_state(config, RunPaths(tmp_path, "run"), source, Environment(CPU))
    assert state.lasso is not None
    lasso.LassoMethod(state, state.lasso, 2)
    assert (state.lasso._fused is not None) == used


@pytest.mark.parametrize(("share", "used"), [(1.0, True), (0.5, False)])
def test_all_ranks_of_a_loop_use_the_kernels_or_none(share: float, used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pair(Ranks):
        world_size = 2

        def mean(self, number: float, device: torch.device) -> float:
            return number * share

    monkeypatch.setattr(pruner, "kernels_work", lambda device: True)
    monkeypatch.setattr(fused_layers, "kernels_work", lambda device: True)
    monkeypatch.setattr(pruner, "unwrap", lambda model: (model, Wrapping((), Pair())))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    pruned = prunetrain.PruneTrain(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(1, 3, 4, 4))
    assert (pruned._penalty._current_lasso()._fused is not None) == used
