"""BatchNorm2d, forward and backward, by number of channels: torch's on a CPU, channels last, against the one over rows that runs use.

    python benchmarks/batch_norm.py --threads 2 --batch-size 128 --pixels 32 --type bfloat16 --rounds 15

Out: a Markdown table. All counts take turns, round after round; each figure is the median of the rounds' ratios with its quartiles. The
second column is the time of torch's BatchNorm relative to its own with 16 channels, the third that of the one over rows relative to torch's
with as many channels, the last whether a run uses it (`prunetrain/training/narrow_batch_norm.py`). A single thread is timed by CPU time.
"""

import argparse

import torch
from runs import machine
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.rounds import Spread, ratios, time_in_turn
from prunetrain.training.narrow_batch_norm import faster_over_rows, over_rows

CHANNELS = "16,4,8,12,20,24,28,32,40,48,56,60,64"  # the others' times are relative to the first


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pixels", type=int, default=32, help="height and width of an image")
    parser.add_argument("--type", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--channels", default=CHANNELS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = (arguments.batch_size, arguments.pixels, arguments.pixels)
    counts = [int(count) for count in arguments.channels.split(",")]
    cases = [_Case(count, shape, getattr(torch, arguments.type)) for count in counts]
    conditions = Conditions(torch.device("cpu"), arguments.batch_size)
    actions = [action for case in cases for action in (case.own, case.rows)]
    seconds = time_in_turn(actions, rounds=arguments.rounds, wait=conditions.wait, clock=conditions.clock)
    images = f"{arguments.batch_size} images of {arguments.pixels}x{arguments.pixels}, {arguments.type}"
    print(f"{machine()}, {arguments.threads} thread(s); {images}\n")
    print(f"| channels | torch's own, over that of {counts[0]} channels | over rows / torch's own | used |\n| --- | --- | --- | --- |")
    for number, case in enumerate(cases):
        own, rows = seconds[2 * number : 2 * number + 2]
        print(f"| {counts[number]} | {_spread(own, seconds[0])} | {_spread(rows, own)} | {'yes' if case.used() else ''} |")


class _Case:
    """A BatchNorm with a number of channels, and a batch of images for it."""

    def __init__(self, channels: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        count, height, width = shape
        self._module = nn.BatchNorm2d(channels)
        self._images, self._gradient = (
            torch.randn(count, channels, height, width).to(dtype).to(memory_format=torch.channels_last) for _ in range(2)
        )
        self._images.requires_grad_()

    def own(self) -> None:
        """Run forward and backward in torch's way."""
        module = self._module
        self._back(F.batch_norm(self._images, None, None, module.weight, module.bias, training=True))

    def rows(self) -> None:
        """Run forward and backward over rows."""
        self._back(over_rows(self._images, self._module.weight, self._module.bias, self._module.eps)[0])

    def used(self) -> bool:
        """Whether a run uses the BatchNorm over rows."""
        return faster_over_rows(self._images, self._module.weight)

    def _back(self, output: Tensor) -> None:
        torch.autograd.grad(output, [self._images, *self._module.parameters()], self._gradient)


def _spread(sample: list[float], base: list[float]) -> str:
    spread = Spread.of(ratios(sample, base))
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


if __name__ == "__main__":
    main()
