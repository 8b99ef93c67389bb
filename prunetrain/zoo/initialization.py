"""Weight initialisation for the networks of the zoo.

In: a module, whose parameters are overwritten. Out: nothing. Layers that a function does not mention keep torch's own initialisation,
U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for the weights and biases of linear layers.
"""

from torch import nn


def he_normal_(model: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / fan_out) with biases 0, and set BatchNorm weights to 1 and biases to 0.

    He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015, arXiv 1502.01852, section 2.2 (backward case, eq. 14). fan_out is
    kernel height * kernel width * output channels, for depthwise convolutions too, as in torchvision.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def narrow_normal_(model: nn.Module) -> None:
    """Draw linear layers from N(0, 0.01^2) with biases 0 (Simonyan and Zisserman, 2014, arXiv 1409.1556, section 3.1)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def caffe_xavier_(model: nn.Module) -> None:
    """Draw convolutions and linear layers from U(-a, a), a = sqrt(3 / fan_in), with biases 0, as Caffe's `xavier` filler does.

    Caffe counts the inputs only, unlike Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    2010, eq. 16, which averages inputs and outputs.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
