"""A module together with its graph. A user's own module has nested names; a generated one has the graph's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from prunetrain.channels.slicing import Cut
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.models.assembling import assemble
from prunetrain.models.checked_tracing import trace_and_check


@dataclass(frozen=True)
class Network:
    """A module and its graph.

    `names` maps the module's qualified names of parameters and buffers to the graph's. `constants` are tensors of the graph that are
    neither parameters nor buffers of the module.
    """

    module: nn.Module
    graph: LayerGraph
    names: Mapping[str, str]
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, example_input: Tensor) -> "Network":
        """Trace a module as it is now; the network shares its tensors.

        Raises:
            TraceError: if the module cannot be written as a network file.
        """
        traced = trace_and_check(module, example_input, same_return_type=True)
        known = set(traced.names.values())
        # Which parameters are trained is the module's business, and may change from step to step.
        layers = tuple(replace(layer, trainable=True) for layer in traced.graph.layers)
        declared = tuple(replace(tensor, trainable=True) for tensor in traced.graph.declared)
        graph = replace(traced.graph, layers=layers, declared=declared)
        return cls(module, graph, traced.names, {name: t for name, t in traced.state.items() if name not in known})

    def fits(self, graph: LayerGraph) -> bool:
        """Whether this is a graph's network: the graph is its own, or its file is traced as its own, since steps have several spellings.

        Raises:
            NetworkFileError, TraceError: if it is neither, and the other cannot be made.
        """
        if graph == self.graph or graph.layers != self.graph.layers:
            return graph == self.graph
        with torch.random.fork_rng(devices=[]):
            module = instantiate(render(graph), graph.class_name)
        return Network.of(module, torch.zeros(1, *graph.input_shape)).graph == self.graph

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return next(iter(self.state().values())).device

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters under the graph's names."""
        found = dict(self.module.named_parameters(remove_duplicate=False))
        return {flat: found[name] for name, flat in self.names.items() if name in found}

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers under the graph's names, detached; they share memory with the module's."""
        found = dict(self.module.named_parameters(remove_duplicate=False)) | dict(self.module.named_buffers(remove_duplicate=False))
        return {**self.constants, **{flat: found[name].detach() for name, flat in self.names.items()}}

    def always_eval(self) -> tuple[str, ...]:
        """The layers, by the graph's names, that are in eval mode while others are in train mode; none if nothing is in train mode now."""
        modes = self._modes()
        training = self.module.training or any(modes.values())
        return tuple(name for name, mode in modes.items() if training and not mode)

    def cut(self, cut: Cut, source: str, filename: str) -> "Network":
        """Build the smaller network from the text of its file.

        It has the modes, `requires_grad`, memory format, device and precision of this network, and shares no memory with it.
        """
        state = {name: tensor.detach().clone() for name, tensor in cut.state.items()}
        module = assemble(source, filename, cut.graph, state).train(self.module.training)
        for name, mode in self._modes().items():
            layer = getattr(module, name, None)
            if isinstance(layer, nn.Module):
                layer.train(mode)
        if any(_is_channels_last(tensor) for tensor in self.state().values()):
            module = module.to(memory_format=torch.channels_last)
        before = self.parameters()
        for name, parameter in module.named_parameters():
            origin = before.get(cut.sources[name].name)  # None: a buffer, such as a fixed filter
            parameter.requires_grad_(origin is not None and origin.requires_grad)
        return Network(module, cut.graph, {name: name for name in cut.state})

    def _modes(self) -> dict[str, bool]:
        """Whether each layer, by the graph's name, is in train mode; some loops keep BatchNorms in eval mode."""
        inside = [(name.rpartition(".")[0], flat.rpartition(".")[0]) for name, flat in self.names.items()]
        return {layer: self.module.get_submodule(name).training for name, layer in inside if layer}


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
