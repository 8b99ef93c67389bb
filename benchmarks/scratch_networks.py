"""Networks to train from scratch beside pruned ones: the architecture that a run ended with, and a narrower ResNet-20."""

from pathlib import Path

from torch import nn

from prunetrain.graph.load import instantiate, read_source
from prunetrain.zoo.initialization import he_normal_
from prunetrain.zoo.resnet import ResNet, ResNet20


def reinitialised(file: str) -> nn.Module:
    """The network of a network file, with weights drawn as the zoo draws those of a ResNet."""
    network = instantiate(read_source(Path(file)), file)
    he_normal_(network)
    return network


class NarrowResNet20(ResNet):
    """ResNet-20 with all widths multiplied by a factor; its MACs go with about the square of that."""

    blocks = ResNet20.blocks

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, factor: float) -> None:
        self.widths = tuple(round(width * factor) for width in ResNet20.widths)  # type: ignore[misc]
        super().__init__(input_shape, num_classes)
