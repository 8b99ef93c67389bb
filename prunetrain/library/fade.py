"""Fading channels out in your own training loop: which channels, and how far they have faded.

In: a network, and the multiply-accumulates that it should have. Out: its weakest channels at exactly zero after a given number of steps.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from prunetrain.channels.rewriting import rewrite
from prunetrain.channels.selection import Candidates, make_plan
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.library.network import Network
from prunetrain.library.settings import Settings
from prunetrain.regularizers.fading import Fading, Ranking


class Fade:
    """Channels that fade linearly over a number of optimizer steps and then stay at zero.

    Args:
        graph: the network.
        weights: the trained parameters, under the graph's names; changed in place.
        average: an average of the network, or None; it fades too, so that a cut does not change its outputs either.
        channels: ids of the channels (`ChannelSpaces.ids`).
        steps: number of optimizer steps that the fade takes, from 1.
        done: how many of these have been made.

    Raises:
        ValueError: if `done` is not between 0 and `steps`.
        IndexError: for channels that the network does not have.
    """

    def __init__(
        self, graph: LayerGraph, weights: Mapping[str, Tensor], average: Network | None, *, channels: list[int], steps: int, done: int = 0
    ) -> None:
        if not 0 <= done <= steps:
            raise ValueError(f"{done} of {steps} steps")
        self._graph, self._spaces = graph, (spaces := find_spaces(graph))
        self._fading = [Fading(graph, spaces, weights, channels)]
        if average is not None:
            parameters = average.parameters()
            own = {name: parameters[name] for name in weights if name in parameters}
            self._fading.append(Fading(graph, spaces, own, channels))
        self._channels = channels
        self._steps = steps
        self._done = done

    def after_step_(self) -> None:
        """Fade by one step."""
        self._done = min(self._done + 1, self._steps)
        left = self._steps - self._done
        for fading in self._fading:
            fading.scale_(left / (left + 1))

    @property
    def unfinished(self) -> str | None:
        """The progress of the fade as text ("2 of 8 steps"); None once the channels are zero."""
        return None if self._done == self._steps else f"{self._done} of {self._steps} steps"

    def macs_left(self) -> int:
        """The multiply-accumulates per image that the network needs without the channels."""
        removable = np.zeros(self._spaces.num_channels, dtype=bool)
        removable[self._channels] = True
        plan = make_plan(Candidates.from_removable(self._spaces, removable, np.zeros(self._spaces.num_channels)))
        return costs(rewrite(self._graph, plan).graph).macs

    def state_dict(self) -> dict[str, list[int] | int]:
        """The arguments `channels`, `steps` and `done` with which to continue the fade."""
        return {"channels": list(self._channels), "steps": self._steps, "done": self._done}


def weakest_channels(
    network: Network, weights: Mapping[str, Tensor], macs: float, settings: Settings, importance: npt.NDArray[np.float64] | None
) -> tuple[list[int], int]:
    """Choose the channels to fade.

    Args:
        network: the network to make smaller.
        weights: its trained parameters, under the graph's names; channels of others stay.
        macs: the multiply-accumulates per image that may be left.
        settings: only `criterion` and `round_to` are read.
        importance: ranks the channels instead of their norms; as for `Ranking`.

    Returns:
        Their ids, weakest first, and the multiply-accumulates left without them: over `macs` if no more channels can be removed.
    """
    ranking = Ranking(network.graph, network.state(), criterion=settings.criterion, trained=weights, importance=importance)
    channels = ranking.weakest(macs, settings.round_to)
    return channels, ranking.macs_without(channels)
