"""What weight sparsity gains without cutting: times of sparse layers relative to dense ones, and sizes of sparse files, at each sparsity.

    python benchmarks/sparse_speed.py --threads 1

Out: Markdown tables. Weights are random, pruned by magnitude layer by layer, in float32. Dense and sparse take turns, round after round;
each figure is the median over rounds of (sparse seconds) / (dense seconds), with quartiles: below 1 the sparse form is faster. Convs are
made sparse through `F.unfold`.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from runs import machine
from torch import Tensor, nn

from prunetrain import zoo
from prunetrain.graph.trace import trace_with_state
from prunetrain.methods.masks import Masks
from prunetrain.methods.registry import decide
from prunetrain.sparse.layers import with_sparse_layers
from prunetrain.sparse.storage import file_sizes

RATES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
MNIST = (1, 28, 28)
_WARM_UP = 3  # rounds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", type=lambda text: [int(word) for word in text.split(",")], default=[1, 128])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{machine()}, {arguments.threads} threads; {arguments.rounds} rounds\n")
    columns = [f"{name}, batch {size}" for name in _NETWORKS for size in arguments.batch_sizes]
    print(f"| sparsity | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for rate in RATES:
        cells = [_cell(make, shape, rate, size, arguments.rounds) for make, shape in _NETWORKS.values() for size in arguments.batch_sizes]
        print(f"| {rate:.0%} | {' | '.join(cells)} |", flush=True)
    print("\nFiles of the MLP, MB\n\n| sparsity | dense | CSR | dense, zlib | CSR, zlib |\n| --- | --- | --- | --- | --- |")
    for rate in RATES:
        sizes = file_sizes(_pruned(_mlp(), MNIST, rate).state_dict())
        row = " | ".join(f"{number / 1e6:.2f}" for number in (sizes.dense, sizes.csr, sizes.dense_zlib, sizes.csr_zlib))
        print(f"| {rate:.0%} | {row} |", flush=True)


def _mlp() -> nn.Module:
    return zoo.build("mlp", input_shape=MNIST, num_classes=10)


def _conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(64, 64, kernel_size=3, padding=1))


_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 1000-1000-500-200": (_mlp, MNIST),
    "3x3 conv, 64 to 64, 16x16": (_conv, (64, 16, 16)),
}


def _pruned(model: nn.Module, shape: tuple[int, ...], rate: float) -> nn.Module:
    """A network after magnitude pruning of every layer."""
    traced = trace_with_state(model, torch.zeros(2, *shape))
    masks = decide("magnitude", traced.graph, traced.state, rate)
    assert isinstance(masks, Masks)
    masks.apply_(traced.state)  # these are the model's own tensors
    return model.eval()


def _cell(make: Callable[[], nn.Module], shape: tuple[int, ...], rate: float, batch_size: int, rounds: int) -> str:
    torch.manual_seed(0)
    dense = _pruned(make(), shape, rate)
    sparse = with_sparse_layers(dense, least=0.0)
    images = torch.randn(batch_size, *shape)
    ratios = []
    with torch.inference_mode():
        for number in range(rounds + _WARM_UP):
            base, ours = _seconds(dense, images), _seconds(sparse, images)
            if number >= _WARM_UP:
                ratios.append(ours / base)
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _seconds(model: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    model(images)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
