"""A wide, shallow residual network for benchmarks with many training runs on a CPU."""

from torch import nn

from prunetrain.zoo.initialization import he_normal_
from prunetrain.zoo.resnet import ResNet


class ResNet8(ResNet):
    """6 * 1 + 2 layers, twice the zoo's widths, at half the image's sides: 308,650 parameters for 10 classes of 3-channel images."""

    blocks = (1, 1, 1)
    widths = (32, 64, 128)

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(input_shape, num_classes)
        self.conv1 = nn.Conv2d(input_shape[0], self.widths[0], kernel_size=3, stride=2, padding=1, bias=False)
        he_normal_(self)
