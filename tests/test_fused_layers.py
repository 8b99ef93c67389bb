"""Which group lasso uses Triton kernels; and the kernels themselves, as far as that takes no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from graphs import residual
from test_group_lasso import weights_of

from prunetrain.channels.spaces import find_spaces
from prunetrain.config import TrainConfig
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.regularizers import fused_layers
from prunetrain.regularizers.fused_layers import kernels_work
from prunetrain.regularizers.group_lasso import GroupLasso
from prunetrain.training import state
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

types = {"layers": "*i64", "rows": "*i32", "columns": "*i32", "sums": "*fp32", "numbers": "*fp32"}
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
    GroupLasso(graph, find_spaces(graph), fused, groups="coupled").shrink_(0.3)
    GroupLasso(graph, find_spaces(graph), plain, groups="coupled", fused=False).shrink_(0.3)
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


def test_all_ranks_use_the_kernels_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "kernels_work", lambda device: True)
    graph = residual()
    model = instantiate(render(graph), graph.class_name)
    for answers, used in (([True, True], True), ([True, False], False)):
        monkeypatch.setattr(Ranks, "gather", lambda ranks, value, answers=answers: answers)
        lasso = state._group_lasso(TrainConfig(), Environment(CPU), graph, find_spaces(graph), model)
        assert (lasso._fused is not None) == used
