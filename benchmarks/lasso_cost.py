"""What the group lasso adds to a training step on CIFAR-10 images (3x32x32), compared with a naive autograd penalty.

    python benchmarks/lasso_cost.py --model resnet32 --batch-size 128 --rounds 15

Out: a Markdown table. The variants take turns, round after round, so that other load slows all alike. Each figure is the median over rounds
of (step with the penalty) / (step without) - 1, with its quartiles. `alone` times the penalty's own code, without a step around it. `in a
run` is its share of all steps of a run, in which only one of `--lasso-interval` takes the proximal step. `fading` is the fading of the
first channels to go, down to 90% of the MACs; `importance` is what `--importance taylor` adds to every step. A single thread is timed by
CPU time.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from runs import machine
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain.channels.spaces import find_spaces
from prunetrain.config import LASSO_INTERVAL, TrainConfig
from prunetrain.graph.costs import costs
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.graph.trace import trace_with_state
from prunetrain.methods.taylor import TaylorImportance
from prunetrain.regularizers.fading import Fading, Ranking
from prunetrain.regularizers.group_lasso import GroupLasso
from prunetrain.zoo import build

STRENGTH = 1e-3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="resnet32", help="a network of the zoo")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--bfloat16", action="store_true", help="bfloat16 autocast and channels-last instead of float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = _Bench(arguments.model, arguments.batch_size, arguments.bfloat16)
    variants: dict[str, Callable[[], None]] = {
        "none": bench.step,
        "slices, subgradient": lambda: bench.step(after_backward=lambda: bench.slices.add_gradient_(STRENGTH)),
        "slices, proximal": lambda: bench.step(after_step=lambda: bench.slices.shrink_(1e-9)),
        "coupled, subgradient": lambda: bench.step(after_backward=lambda: bench.coupled.add_gradient_(STRENGTH)),
        "coupled, proximal": lambda: bench.step(after_step=lambda: bench.coupled.shrink_(1e-9)),
        "naive autograd penalty": lambda: bench.step(penalty=bench.naive_penalty),
    }
    alone: dict[str, Callable[[], object]] = {
        "slices, subgradient": lambda: bench.slices.add_gradient_(STRENGTH),
        "slices, proximal": lambda: bench.slices.shrink_(1e-9),
        "coupled, subgradient": lambda: bench.coupled.add_gradient_(STRENGTH),
        "coupled, proximal": lambda: bench.coupled.shrink_(1e-9),
        "naive autograd penalty": lambda: torch.autograd.backward(STRENGTH * bench.naive_penalty()),
        "fading": lambda: bench.fading.scale_(0.999),
        "importance": bench.importance.gather_,
    }
    bench.keep_gradients()
    seconds = {name: [_timed(run) for _ in range(1)] for name, run in variants.items()}
    own = {name: [_timed(run)] for name, run in alone.items()}
    for _ in range(arguments.rounds):
        for name, run in variants.items():
            seconds[name].append(_timed(run))
        for name, lone in alone.items():
            own[name].append(statistics.median(_timed(lone) for _ in range(5)))
    base = seconds["none"][1:]
    precision = "bfloat16, channels-last" if arguments.bfloat16 else "float32"
    what = f"{arguments.model}, batch {arguments.batch_size}, {precision}"
    clock = ", CPU time" if arguments.threads == 1 else ""
    print(f"{what}; {machine()}, {arguments.threads} threads{clock}; {arguments.rounds} rounds\n")
    print("| penalty | share of a step, median (quartiles) | alone, share of a step | in a run |\n| --- | --- | --- | --- |")
    for name, times in seconds.items():
        if name == "none":
            continue
        low, middle, high = statistics.quantiles((t / b - 1 for t, b in zip(times[1:], base, strict=True)), n=4)
        share = statistics.median(own[name][1:]) / statistics.median(base)
        in_a_run = share / LASSO_INTERVAL if "proximal" in name else share
        print(f"| {name} | {middle:+.2%} ({low:+.2%} to {high:+.2%}) | {share:.2%} | {in_a_run:.2%} |")
    for name in ("fading", "importance"):
        print(f"| {name} | | {statistics.median(own[name][1:]) / statistics.median(base):.2%} | |")


class _Bench:
    def __init__(self, model: str, batch_size: int, bfloat16: bool) -> None:
        torch.manual_seed(0)
        traced = trace_with_state(build(model, input_shape=(3, 32, 32), num_classes=10), torch.zeros(2, 3, 32, 32))
        self._model = instantiate(render(traced.graph), model)
        self._model.load_state_dict(traced.state)
        self._images, self._labels = torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
        self._bfloat16 = bfloat16
        if bfloat16:
            self._model = self._model.to(memory_format=torch.channels_last)
            self._images = self._images.contiguous(memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)
        spaces, weights = find_spaces(traced.graph), dict(self._model.named_parameters())
        self.slices = GroupLasso(traced.graph, spaces, weights, groups="slices")
        self.coupled = GroupLasso(traced.graph, spaces, weights, groups="coupled")
        macs = 0.9 * costs(traced.graph).macs
        ranking = Ranking(traced.graph, traced.state, criterion=TrainConfig.criterion)
        going = ranking.weakest(macs, ranking.coarsest_blocks(macs, traced.graph))
        self.fading = Fading(traced.graph, spaces, weights, going)
        self.importance = TaylorImportance(traced.graph, weights)

    def step(
        self,
        penalty: Callable[[], Tensor] | None = None,
        after_backward: Callable[[], None] | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            loss = F.cross_entropy(self._model(self._images), self._labels)
        if penalty:
            loss = loss + STRENGTH * penalty()
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if after_backward:
            after_backward()
        self._optimizer.step()
        if after_step:
            after_step()

    def keep_gradients(self) -> None:
        """Run one step, so that the penalties have gradients to add to."""
        self.step()

    def naive_penalty(self) -> Tensor:
        total = torch.zeros(())
        weights = [m.weight for m in self._model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        for number, weight in enumerate(weights):
            if number < len(weights) - 1:
                total = total + weight.flatten(1).square().sum(1).sqrt().sum()
            if number > 0:
                total = total + weight.transpose(0, 1).flatten(1).square().sum(1).sqrt().sum()
        return total


def _timed(run: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


if __name__ == "__main__":
    main()
