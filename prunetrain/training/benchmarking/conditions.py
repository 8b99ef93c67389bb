"""How a network runs while it is timed: device, batch, precision, memory format, compiled or not."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError, is_out_of_memory
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.training.compilation import OFF
from prunetrain.training.narrow_batch_norm import speed_up_batch_norm_
from prunetrain.training.precision import autocast


@dataclass(frozen=True)
class Conditions:
    """How a network runs; `amp`, `compile` and `optimizer` are values of those settings."""

    device: torch.device
    batch_size: int
    amp: str = "off"
    channels_last: bool = False
    compile: str = OFF
    optimizer: str = "sgd"

    @classmethod
    def of(cls, config: TrainConfig, device: torch.device) -> "Conditions":
        """The conditions that a run's settings ask for."""
        return cls(device, config.batch_size, config.amp, config.channels_last, config.compile, config.optimizer)

    def with_batch(self, batch_size: int) -> "Conditions":
        """The same conditions with another batch size."""
        return replace(self, batch_size=batch_size)

    def autocast(self) -> AbstractContextManager[object]:
        """The autocast context of a forward pass."""
        return autocast(self.device, self.amp)

    def build(self, graph: LayerGraph) -> nn.Module:
        """Build a network with random weights, on the device, without touching torch's generators."""
        with preserve_rng_state(self.device), torch.device(self.device):
            model = instantiate(render(graph), "<benchmark>")
        return self.prepare_for_training(model)

    def prepare_for_training(self, module: nn.Module) -> nn.Module:
        """Prepare a network or layer on the device as a run does before it trains."""
        if self.channels_last:
            _to_channels_last_(module)
        speed_up_batch_norm_(module, self.device, compiled=self.compile != OFF)
        return module

    def images(self, shape: tuple[int, ...]) -> Tensor:
        """Make a batch of random images, without touching torch's generators."""
        images = torch.randn(self.batch_size, *shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last and images.dim() == 4 else images

    @contextmanager
    def explain_out_of_memory(self) -> Iterator[None]:
        """Inside, running out of memory raises a `ConfigError`."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise ConfigError(f"batches of {self.batch_size} images do not fit into memory: use a smaller --batch-size") from None
            raise

    def clock(self) -> float:
        """Seconds, for differences.

        If one CPU thread does all the work, this is the CPU time of this process, which does not run while the machine does something
        else; otherwise it is wall-clock time.
        """
        return time.process_time() if self.is_single_threaded() else time.perf_counter()

    @property
    def is_asynchronous(self) -> bool:
        """Whether the device works asynchronously to Python, so that times must be taken by its own clock."""
        return self.device.type == "cuda"

    def is_single_threaded(self) -> bool:
        """Whether one CPU thread does all the work."""
        return self.device.type == "cpu" and torch.get_num_threads() == 1

    def wait(self) -> None:
        """Wait until the device has finished all work given to it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, action: Callable[[], object]) -> float:
        """Time an action on the device by `clock`, after waiting for all earlier work."""
        self.wait()
        start = self.clock()
        action()
        self.wait()
        return self.clock() - start


def _to_channels_last_(model: nn.Module) -> None:
    """Do what `Module.to` does; that refuses tensors without memory that were initialised in place."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


@contextmanager
def preserve_rng_state(device: torch.device) -> Iterator[None]:
    """Inside, random numbers come from a fixed seed; afterwards torch's generators continue as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Inside, torch computes with this number of CPU threads; None leaves it unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """The name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor() or platform.machine()
