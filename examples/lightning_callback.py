"""A Lightning callback that makes the network of a LightningModule smaller while Lightning trains it.

    pip install lightning
    python examples/lightning_callback.py

The LightningModule keeps its network in an attribute (`network` below) and returns a loss from `training_step`; it needs no changes. The
optimizer stays the same object over a cut, so Lightning's references to it and to the schedulers remain valid.

For one device, in full or bfloat16 precision: Lightning's data-parallel strategies wrap the whole LightningModule, whose network must not
change under them, and its float16 plugin passes a scaled loss to callbacks.
"""

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from plain_loop import Net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import prunetrain
from prunetrain.training.data.npz import DIGITS, read


class PruneTrainCallback(Callback):
    """Group lasso at every step, a cut after every `interval` epochs.

    Args:
        attribute: where the LightningModule keeps its network.
        interval: epochs between two cuts.
        folder: where the networks are written.
        settings: further arguments of `prunetrain.PruneTrain`.
    """

    def __init__(self, attribute: str, *, interval: int, folder: Path, **settings: Any) -> None:
        self._attribute, self._interval, self._folder, self._settings = attribute, interval, folder, settings
        self._pruner: prunetrain.PruneTrain | None = None
        self._loss = torch.zeros(())

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        network = getattr(pl_module, self._attribute)
        self._pruner = prunetrain.PruneTrain(network, optimizer, pl_module.example_input_array, **self._settings)

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach() * trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, trainer: Any, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        self._pruner.regularize(self._loss)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self._interval == 0:
            step = self._pruner.reconfigure(self._folder / f"epoch_{epoch:03d}.py")
            setattr(pl_module, self._attribute, step.model)
            print(f"epoch {epoch}: {step.change.channels[0]} -> {step.change.channels[1]} channels: {step.path}")


class Classifier(lightning.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self, network: nn.Module, epochs: int) -> None:
        super().__init__()
        self.network = network
        self.epochs = epochs
        self.example_input_array = torch.zeros(1, 1, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[Tensor], number: int) -> None:
        images, labels = batch
        self.log("top1", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]


def main() -> None:
    """Train, cut and print the results."""
    parser = argparse.ArgumentParser(description="Train a small network on digits with Lightning and make it smaller while it trains.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--interval", type=int, default=5, help="epochs between two cuts")
    parser.add_argument("--output", type=Path, default=Path("generated_nets/lightning"), help="folder for the networks")
    options = parser.parse_args()

    lightning.seed_everything(0, verbose=False)
    train, test = (TensorDataset((split.images / 255 - 0.3) / 0.38, split.labels) for split in read(DIGITS))
    classifier = Classifier(Net(), options.epochs)
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        devices=1,
        callbacks=[PruneTrainCallback("network", interval=options.interval, folder=options.output, penalty_ratio=0.8)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, batch_size=256))
    print(f"top-1 {100 * float(trainer.callback_metrics['top1']):.2f}%, {sum(p.numel() for p in classifier.parameters()):,} parameters")


if __name__ == "__main__":
    main()
