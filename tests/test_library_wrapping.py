"""Models that torch wrapped: compiled, data-parallel over two real processes, both."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import EXAMPLE, kill_, logits, network, sgd, train_
from torch import Tensor, distributed, fx, multiprocessing, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from prunetrain import PruneTrain
from prunetrain.errors import ConfigError, OutputError


def test_compiled_model_is_compiled_again_by_the_same_backend() -> None:
    compilations = []

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
        compilations.append(graph)
        return graph.forward

    model = network()
    compiled = torch.compile(model, backend=backend)
    optimizer = sgd(model)
    pruner = PruneTrain(compiled, optimizer, EXAMPLE)
    train_(compiled, optimizer, 2, pruner=pruner)
    assert len(compilations) == 1
    kill_(model)
    expected = logits(model)
    step = pruner.reconfigure()
    assert type(step.model) is type(compiled)
    assert (logits(step.model) - expected).abs().max() <= 1e-10 * expected.abs().max()
    train_(step.model, optimizer, 2, pruner=pruner)
    assert len(compilations) == 3  # in eval and in train mode
    assert pruner.reconfigure().change.channels[0] < 20


def test_model_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.compile(backend="eager")
    compiled = model._compiled_call_impl
    optimizer = sgd(model)
    pruner = PruneTrain(model, optimizer, EXAMPLE)
    kill_(model)
    expected = logits(model)
    monkeypatch.setattr(nn.Module, "compile", lambda module: monkeypatch.setattr(module, "_compiled_call_impl", module._call_impl))
    step = pruner.reconfigure()
    assert step.model._compiled_call_impl is not None
    assert model._compiled_call_impl is compiled
    assert torch.allclose(logits(step.model), expected, rtol=1e-10)


def test_synchronised_batch_norms_stay_so() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    optimizer = sgd(model)
    pruner = PruneTrain(model, optimizer, EXAMPLE)
    kill_(model)
    expected = logits(model)
    for _ in range(2):
        step = pruner.reconfigure()
        assert torch.allclose(logits(step.model), expected, rtol=1e-10)
        norms = [module for module in step.model.modules() if "BatchNorm" in type(module).__name__]
        assert [type(module) for module in norms] == [nn.SyncBatchNorm] * 2
        assert optimizer.param_groups[0]["params"] == list(step.model.parameters())


def in_process(rank: int, folder: str, world: int) -> None:
    """One of two processes that train together, each on its own images."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        facts = [train_together(rank, Path(folder), order) for order in ("plain", "compiled inside", "compiled outside")]
        facts.append(fail_together(Path(folder)))
        facts.append(compress_together(rank))
        torch.save(facts, f"{folder}/rank{rank}.pt")
    finally:
        distributed.destroy_process_group()


def wrapped(model: nn.Module, order: str) -> nn.Module:
    inner = torch.compile(model, backend="eager") if order == "compiled inside" else model
    parallel = DistributedDataParallel(inner, find_unused_parameters=True, gradient_as_bucket_view=True, bucket_cap_mb=3)
    return torch.compile(parallel, backend="eager") if order == "compiled outside" else parallel  # type: ignore[return-value]


def parallel_of(model: nn.Module) -> DistributedDataParallel:
    parallel = getattr(model, "_orig_mod", model)
    assert isinstance(parallel, DistributedDataParallel)
    return parallel


def train_together(rank: int, folder: Path, order: str) -> dict[str, Any]:
    model = network()
    together = wrapped(model, order)
    optimizer = sgd(model)
    pruner = PruneTrain(together, optimizer, EXAMPLE, penalty_ratio=0.4)
    losses = [train_(together, optimizer, 1, seed=rank, pruner=pruner)]
    train_(together, optimizer, 2, seed=rank, pruner=pruner)
    kill_(model)
    if rank == 1:  # as if rounding had kept a channel alive here that is dead on rank 0
        with torch.no_grad():
            model.get_parameter("stem.0.weight")[1] = 0.01
            model.get_parameter("head.weight")[:, 1] = 0.01
    step = pruner.reconfigure(folder / order / f"rank{rank}" / "epoch_001.py")
    parallel = parallel_of(step.model)
    assert type(step.model) is type(together)
    assert parallel.find_unused_parameters and parallel.gradient_as_bucket_view
    assert parallel.bucket_bytes_cap == 3 * 2**20
    state = [tensor.clone() for tensor in pruner._network.state().values()]
    left = pruner.fade(macs=0.3, steps=2)
    train_(step.model, optimizer, 2, seed=rank + 2, pruner=pruner)
    result = {
        "order": order,
        "loss": losses[0],
        "strength": pruner.lasso_strength,
        "channels": step.change.channels,
        "state": state,
        "weights": [parameter.detach().clone() for parameter in step.model.parameters()],
        "momenta": [optimizer.state[parameter]["momentum_buffer"].clone() for parameter in step.model.parameters()],
    }
    return result | {"left": left, "faded": pruner.reconfigure().change.macs}


def fail_together(folder: Path) -> dict[str, Any]:
    """A file that only rank 0 wants to write, and cannot."""
    model = network()
    together = DistributedDataParallel(model, find_unused_parameters=True)
    pruner = PruneTrain(together, sgd(model), EXAMPLE)
    (folder / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        pruner.reconfigure(folder / "file" / "epoch_001.py")
    assert pruner.reconfigure().change.channels == (20, 20)
    return {"error": str(caught.value)}


def compress_together(rank: int) -> dict[str, Any]:
    """A communication hook that keeps tensors of the gradients' shapes."""
    model = network()
    model.idle.requires_grad_(False)  # unused: with find_unused_parameters, gloo mixes up its messages and the hook's
    together = DistributedDataParallel(model)
    state = PowerSGDState(process_group=None, start_powerSGD_iter=2, min_compression_rate=0.1)
    together.register_comm_hook(state, powerSGD_hook)
    optimizer = sgd(together)
    pruner = PruneTrain(together, optimizer, EXAMPLE)
    train_(together, optimizer, 4, seed=rank)
    before = {tensor.numel() for tensor in state.error_dict.values()}
    kill_(model)
    step = pruner.reconfigure()
    train_(step.model, optimizer, 2, seed=rank)
    after = {tensor.numel() for tensor in state.error_dict.values()}
    return {"before": before, "after": after, "weights": [parameter.detach().clone() for parameter in step.model.parameters()]}


def test_data_parallel_is_refused() -> None:
    model = nn.DataParallel(network())
    with pytest.raises(ConfigError, match="give the module inside, or use DistributedDataParallel"):
        PruneTrain(model, sgd(model), EXAMPLE)


def test_two_processes_agree(tmp_path: Path) -> None:
    multiprocessing.spawn(in_process, args=(str(tmp_path), 2), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for left, right in zip(first[:-2], second[:-2], strict=True):
        assert left["loss"] != right["loss"]
        assert left["strength"] == right["strength"]
        assert left["channels"] == right["channels"]
        assert left["channels"] == (20, 4 + 3 + 4 + 3)
        assert left["left"] == right["left"] < 0.3
        assert left["faded"] == right["faded"]
        assert left["faded"][1] < left["faded"][0]
        for kind in ("state", "weights", "momenta"):
            for a, b in zip(left[kind], right[kind], strict=True):
                assert torch.equal(a, b), (left["order"], kind)
        assert sorted(path.name for path in (tmp_path / left["order"] / "rank0").iterdir()) == ["epoch_001.pt", "epoch_001.py"]
        assert not (tmp_path / left["order"] / "rank1").exists()
    assert first[-2] == second[-2]
    assert "cannot write" in first[-2]["error"]
    for result in (first[-1], second[-1]):
        assert result["before"]
        assert result["after"]
        assert result["before"].isdisjoint(result["after"])
    assert all(torch.equal(a, b) for a, b in zip(first[-1]["weights"], second[-1]["weights"], strict=True))
