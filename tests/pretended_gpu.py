"""A GPU for machines that have none: tensors that say they are on cuda:0, and keep their values in CPU memory.

What code does wrong with a GPU shows here as on a real one: tensors of two devices in one operation raise an error, and operations for
which the CPU waits for the GPU are noted. Kernels are the CPU's, so results are the same bits as on it. Autocast, several GPUs, pinned
memory and torch.compile are not pretended.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _device
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
_ATEN = torch.ops.aten
_READS = {  # their results, or the shapes of these, depend on values that the CPU must wait for
    _ATEN._local_scalar_dense.default,
    _ATEN.equal.default,
    _ATEN.masked_select.default,
    _ATEN.nonzero.default,
    _ATEN._unique2.default,
    _ATEN.unique_dim.default,
}
_TRANSFERS = {_ATEN._to_copy.default, _ATEN.copy_.default}


class GpuTensor(Tensor):
    """A tensor on the pretended GPU, whose values are in `held`. Torch's own C++ code believes that it is on the meta device."""

    held: Tensor
    gpu: "PretendedGpu"

    @staticmethod
    def __new__(cls, held: Tensor, gpu: "PretendedGpu") -> Self:
        with torch.inference_mode(False):
            tensor = Tensor._make_wrapper_subclass(
                cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=torch.device("meta")
            )
        tensor.held, tensor.gpu = held, gpu
        return tensor

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **options: Any) -> str:
        return f"GpuTensor({self.held!r})"

    def tolist(self) -> Any:
        self.gpu.note_wait("tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        gpu = next(leaf.gpu for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, GpuTensor))
        return gpu.run(function, args, kwargs or {})


class PretendedGpu(TorchDispatchMode):
    """The one GPU of this machine while the mode is active. `waits` tells for what the CPU has waited: operation and line of prunetrain."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.paused = 0  # while the tracer works, whose own tensors without values are on the meta device

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        mine = _is_gpu(kwargs.get("device")) or any(isinstance(leaf, GpuTensor) for leaf in tree_leaves((args, kwargs)))
        return self.run(function, args, kwargs) if mine and not self.paused else function(*args, **kwargs)

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation on the values of its arguments."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = [tensor for tensor in tensors if isinstance(tensor, GpuTensor)]
        device = kwargs.get("device")
        to_gpu = bool(on_gpu) if device is None else _is_gpu(device)
        if function is _ATEN.copy_.default:
            to_gpu = isinstance(args[0], GpuTensor)
        if function in _READS or (function in _TRANSFERS and on_gpu and not to_gpu):
            self.note_wait(str(function))
        elif on_gpu and function not in _TRANSFERS:
            self._check_devices(str(function), args, tensors)
        if _is_gpu(device):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        known = {id(tensor.held): tensor for tensor in on_gpu}  # results of operations in place
        result = function(*tree_map(_values, args), **tree_map(_values, kwargs))

        def wrapped(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not to_gpu:
                return leaf
            return known[id(leaf)] if id(leaf) in known else GpuTensor(leaf, self)

        return tree_map(wrapped, result)

    def _check_devices(self, name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
        """Refuse what a GPU refuses: tensors of the CPU, other than single numbers, and indices of a tensor, which it copies and waits."""
        elsewhere = [tensor for tensor in tensors if not isinstance(tensor, GpuTensor) and tensor.dim()]
        if elsewhere and isinstance(args[0], GpuTensor) and name.startswith(("aten.index.", "aten.index_put")):
            self.note_wait(name)
        elif elsewhere or (name.startswith("aten.index") and not isinstance(args[0], GpuTensor)):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu ({_line()})")

    def note_wait(self, name: str) -> None:
        self.waits.append(f"{name} {_line()}")


def _is_gpu(device: Any) -> bool:
    """Whether an operation's device is the GPU: for tensors that are on it already, torch passes the device that it believes in."""
    return device is not None and torch.device(device).type in ("cuda", "meta")


def _values(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, GpuTensor) else leaf


def _line() -> str:
    """The innermost line of prunetrain that is running."""
    frame = sys._getframe()
    while frame.f_back is not None and "/prunetrain/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """A machine with one GPU, which torch finds and can use."""
    gpu = PretendedGpu()
    _device._device_constructors()  # torch remembers at the first call which functions heed a default device: those from before the patches
    enter, leave, make, save = FakeTensorMode.__enter__, FakeTensorMode.__exit__, torch.tensor, torch.save

    def pausing(change: int, method: Callable[..., Any]) -> Callable[..., Any]:
        def paused(*args: Any) -> Any:
            gpu.paused += change
            return method(*args)

        return paused

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        if gpu.paused:
            return make(data, device=device, **options)
        return make(data, device="cpu", **options).to(torch.empty(0).device if device is None else device)

    answers: dict[str, Any] = {
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
        "is_current_stream_capturing": False,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "get_device_name": "pretended",
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "manual_seed_all": None,
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "memory_reserved": 0,
        "reset_peak_memory_stats": None,
        "mem_get_info": (2**34, 2**34),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, _answering(answer))
        patch.setattr(torch.cuda, "default_generators", (torch.Generator(),))
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(torch.accelerator, "current_accelerator", _answering(None))
        patch.setattr(torch, "save", lambda content, *rest, **options: save(tree_map(_values, content), *rest, **options))
        patch.setattr(FakeTensorMode, "__enter__", pausing(1, enter))
        patch.setattr(FakeTensorMode, "__exit__", pausing(-1, leave))
        patch.setattr(fake_tensor, "init_gpu_context", _answering(None), raising=False)  # torch 2.11 makes a tensor on the GPU first
        patch.setattr(torch.backends.cudnn, "enabled", False)
        patch.setitem(sys.modules, "triton", None)  # cannot be imported
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with gpu:
                yield gpu
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)


def _answering(answer: Any) -> Callable[..., Any]:
    return lambda *args, **options: answer
