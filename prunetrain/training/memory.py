"""The memory that a training step takes: measured on a GPU, estimated on a CPU. In: a network, images per step. Out: bytes.

The estimate runs the step on tensors without memory and adds up the sizes of all tensors that are alive at once: weights, optimizer
state, activations kept for the backward pass, gradients and temporary results. Whatever the batch, it takes neither memory nor arithmetic,
and it needs no table of operations. It leaves out what an operation uses internally (a convolution's rearranged operands), the lasso's
temporaries and DistributedDataParallel's buckets.
"""

import gc
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prunetrain.errors import is_out_of_memory
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.memory import peak_memory
from prunetrain.training.benchmarking.steps import TrainingStep
from prunetrain.training.compilation import OFF, forget_compiled
from prunetrain.training.kernels import fastest_kernels
from prunetrain.training.state import TrainState

OUT_OF_MEMORY = float("inf")
_RESERVE = 0.05  # of a GPU's memory stays free: libraries and fragmentation need some


def is_measured(state: TrainState) -> bool:
    """Whether `step_memory` measures; otherwise it estimates."""
    return state.device.type == "cuda"


def step_memory(state: TrainState, graph: LayerGraph, images: int) -> float:
    """Bytes at the peak of a training step, everything that the step needs included.

    Args:
        state: the run, for its settings and device.
        graph: the network that the step trains.
        images: images per step, on one device.

    Returns:
        Bytes; `OUT_OF_MEMORY` if the device does not have enough.
    """
    conditions = replace(Conditions.of(state.config, state.device), batch_size=images, compile=OFF)
    return _measured(graph, conditions) if is_measured(state) else estimated_memory(graph, conditions)


def available_memory(state: TrainState) -> float:
    """The most bytes that `step_memory` may reach on this device beside what is there now; unlimited on a CPU."""
    if not is_measured(state):
        return float("inf")
    free, total = torch.cuda.mem_get_info(state.device)
    unused = torch.cuda.memory_reserved(state.device) - torch.cuda.memory_allocated(state.device)
    return free + unused - _RESERVE * total


def restart_peak(state: TrainState) -> None:
    """Reset the allocator's record of its peak on a GPU; a process on a CPU has one peak, which cannot be reset."""
    if is_measured(state):
        torch.cuda.reset_peak_memory_stats(state.device)


def release_memory(state: TrainState) -> None:
    """Release what a GPU's allocator kept of a network that is gone: after a cut all sizes differ, and fit badly into old blocks."""
    if is_measured(state):
        forget_compiled(state.config.compile)
        gc.collect()
        torch.cuda.empty_cache()


def _measured(graph: LayerGraph, conditions: Conditions) -> float:
    """The allocator's peak over real steps, above what was there before."""
    try:
        with fastest_kernels(conditions.device):
            return peak_memory(lambda: TrainingStep(graph, conditions), conditions.device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return OUT_OF_MEMORY
    finally:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(conditions.device)


def estimated_memory(graph: LayerGraph, conditions: Conditions) -> float:
    """The peak over steps on tensors without memory; bfloat16 stands in for float16, since it is as large and needs no loss scaling."""
    conditions = replace(conditions, amp="bfloat16") if conditions.amp == "float16" else conditions
    with FakeTensorMode():
        return peak_memory(lambda: TrainingStep(graph, conditions), conditions.device)
