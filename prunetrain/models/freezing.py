"""Find the frozen parameters of a traced model, and those that its network file cannot keep frozen.

A file can freeze whole layers, and tensors that the network declares itself.
"""

from torch import nn

from prunetrain.graph.trace import Traced


def frozen_parameters(model: nn.Module, traced: Traced) -> list[str]:
    """The model's frozen parameters that the network has too, by the model's qualified names."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad and name in traced.names]


def find_partly_frozen(model: nn.Module, traced: Traced) -> str | None:
    """A frozen parameter whose layer has others that are trained, so that the file trains it too; None if there is none."""
    trained = {layer.name for layer in traced.graph.layers if layer.trainable}
    return next((name for name in frozen_parameters(model, traced) if traced.names[name].rpartition(".")[0] in trained), None)
