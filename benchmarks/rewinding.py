"""Rewinding and restarting against fine-tuning: a network pruned by magnitude at the same rates, retrained in different ways, as long.

    python benchmarks/rewinding.py runs/rewinding --epochs 10 --rewind-epoch 1 --rates 0.5,0.8,0.9,0.95 --seeds 0,1 -- \
        --model lenet5 --dataset npz --data-dir data/cifar10.npz

Out: one study per way (`prunetrain study`), each in its own folder, all with the same dense networks; rewinding.md with a table and
rewinding.svg with a plot. Run it again to resume where it was.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from prunetrain.files import write_text
from prunetrain.method_settings import FINETUNE, LR_RESTART
from prunetrain.studies.plot import plot_sparsity
from prunetrain.studies.records import DENSE
from prunetrain.studies.summary import points, table

WAYS = (FINETUNE, LR_RESTART, "lr-rewind", "weight-rewind")


def main() -> None:
    """Run the studies and join them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rewind-epoch", type=int, default=1)
    parser.add_argument("--rates", default="0.5,0.8,0.9,0.95")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--title", default="")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, flags = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    records = []
    for way in WAYS:
        folder = arguments.folder / way
        _share_dense(arguments.folder / WAYS[0], folder)
        rest = arguments.epochs - arguments.rewind_epoch
        length = ("--retrain-epochs", rest) if way in (FINETUNE, LR_RESTART) else ("--rewind-epoch", arguments.rewind_epoch)
        how = ["--retrain", way, *map(str, length)]
        grid = ["--methods", "magnitude", "--rates", arguments.rates, "--seeds", arguments.seeds, "--plot", "none"]
        training = ["--epochs", str(arguments.epochs), "--save-epochs", str(arguments.rewind_epoch), *flags]
        subprocess.run([sys.executable, "-m", "prunetrain", "study", folder, *grid, *how, *training], check=True)
        found = json.loads((folder / "study.json").read_text())
        records += [record for record in found if record["method"] == DENSE and way == WAYS[0]]
        records += [record | {"method": way} for record in found if record["method"] != DENSE]
    summed = points(records)
    write_text(arguments.folder / "rewinding.md", table(summed))
    plot_sparsity(arguments.folder / "rewinding.svg", summed, arguments.title)
    print(table(summed))


def _share_dense(first: Path, folder: Path) -> None:
    """Copy the trained networks of the first study, from which all ways start."""
    if folder == first or folder.exists():
        return
    for kind in ("checkpoints", "generated_nets"):
        for run in (first / kind).glob("dense-seed-*"):
            shutil.copytree(run, folder / kind / run.name)


if __name__ == "__main__":
    main()
