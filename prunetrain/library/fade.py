"""Channels on their way out in someone's own loop: which, and how far they are.

In: a network, how many multiply-accumulates it is to have. Out: the weakest channels at exactly zero, so many optimizer steps later.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.library.network import Network
from prunetrain.library.settings import Settings
from prunetrain.regularizers.fading import Fading, Ranking


class Fade:
    """Channels that fade in a straight line over some optimizer steps, and stay at zero after that.

    Args:
        graph: the network.
        weights: those that are trained, under the graph's names; changed in place.
        average: an average of the network, which fades along, so that a cut does not change it either; None if there is none.
        channels: ids of the channels (`ChannelSpaces.ids`).
        steps: over how many, from 1.
        done: how many of these have been made.

    Raises:
        ValueError: for more that have been made than there are.
        IndexError: for channels that the network does not have.
    """

    def __init__(
        self, graph: LayerGraph, weights: Mapping[str, Tensor], average: Network | None, *, channels: list[int], steps: int, done: int = 0
    ) -> None:
        if not 0 <= done <= steps:
            raise ValueError(f"{done} of {steps} steps")
        spaces = find_spaces(graph)
        self._fading = [Fading(graph, spaces, weights, channels)]
        if average is not None:
            parameters = average.parameters()
            own = {name: parameters[name] for name in weights if name in parameters}
            self._fading.append(Fading(graph, spaces, own, channels))
        self._channels = channels
        self._steps = steps
        self._done = done

    def after_step_(self) -> None:
        """Fade by one step's part."""
        self._done = min(self._done + 1, self._steps)
        left = self._steps - self._done
        for fading in self._fading:
            fading.scale_(left / (left + 1))

    @property
    def unfinished(self) -> str | None:
        """How far it is, in a few words; None if the channels are zero."""
        return None if self._done == self._steps else f"{self._done} of {self._steps} steps"

    def state_dict(self) -> dict[str, list[int] | int]:
        """The arguments `channels`, `steps` and `done`, to go on."""
        return {"channels": list(self._channels), "steps": self._steps, "done": self._done}


def weakest_channels(network: Network, weights: Mapping[str, Tensor], macs: float, settings: Settings) -> tuple[list[int], int]:
    """The channels to fade.

    Args:
        network: whose they are.
        weights: those that are trained, under the graph's names; what the others hold stays.
        macs: the multiply-accumulates of an image that may be left.
        settings: `criterion` and `round_to` count.

    Returns:
        Their ids, weakest first, and the multiply-accumulates that are left without them: more than asked for where no more can go.
    """
    layers = tuple(replace(layer, trainable=f"{layer.name}.weight" in weights) for layer in network.graph.layers)
    ranking = Ranking(replace(network.graph, layers=layers), network.state(), criterion=settings.criterion)
    channels = ranking.weakest(macs, settings.round_to)
    return channels, ranking.macs_without(channels)
