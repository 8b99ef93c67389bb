"""A network file and its weights, which lie in a run's checkpoint or beside the file under the same name."""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from prunetrain.errors import CheckpointError, ConfigError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import instantiate, read_source
from prunetrain.graph.memory import check_results_fit
from prunetrain.graph.parse import parse
from prunetrain.models.weights import read_weights
from prunetrain.training.expected_input import expected_input
from prunetrain.training.pairs import read_pair, weights_fitting
from prunetrain.training.stored_config import stored_config

_WEIGHTS = (".pt", ".safetensors")


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights, on the CPU: the network file's path, text and graph; the state dict, and the file that it was in.

    `metadata` is JSON with what a checkpoint knows about the network's input and classes; empty without a checkpoint.
    """

    network: Path
    source: str
    graph: LayerGraph
    weights: Path
    state: dict[str, Tensor]
    metadata: str = ""

    def build(self) -> nn.Module:
        """Build the network in eval mode.

        Raises:
            CheckpointError: if the weights do not fit it, or are not float32.
        """
        check_results_fit(self.graph, str(self.network), images=1)
        model = instantiate(self.source, str(self.network))
        with weights_fitting(self.weights, self.network):
            model.load_state_dict(self.state)  # copies: weights of a run in channels-last memory would otherwise keep that format
        kinds = {str(tensor.dtype) for tensor in self.state.values() if tensor.is_floating_point()} - {"torch.float32"}
        if kinds:
            raise CheckpointError(f"{self.weights}: its weights are {', '.join(sorted(kinds))}: save them as float32")
        return model.eval()


def read_trained_network(path: Path) -> TrainedNetwork:
    """Read the network of a checkpoint, or of a network file with weights of the same stem beside it.

    Raises:
        ConfigError: if the path is neither, or if the network file does not have exactly one file of weights beside it, which can be read.
        CheckpointError: if the checkpoint cannot be read, or what it says about its data does not fit its network.
        NetworkFileError: if the network file is missing, was changed, or holds anything but a network.
    """
    if path.suffix == ".py":
        source = read_source(path)
        graph, weights = parse(source, str(path)), _weights_beside(path)
        return TrainedNetwork(path, source, graph, weights, read_weights(weights))
    if path.suffix != ".pt" and not path.is_dir():
        raise ConfigError(f"{path} is neither a checkpoint (.pt) nor a network file (.py): name one of these")
    pair = read_pair(path)
    pair.check_data()
    saved = pair.checkpoint
    expected = expected_input(pair.graph.input_shape, stored_config(path, saved), saved.class_names, saved.statistics)
    return TrainedNetwork(pair.network, pair.source, pair.graph, path, saved.model, json.dumps(expected))


def _weights_beside(network: Path) -> Path:
    candidates = [network.with_suffix(suffix) for suffix in _WEIGHTS]
    found = [path for path in candidates if path.exists()]
    if not found:
        raise ConfigError(f"{network} has no weights beside it ({' or '.join(path.name for path in candidates)}): name a run's checkpoint")
    if len(found) > 1:
        raise ConfigError(f"{' and '.join(map(str, found))} are both there: leave one of them beside {network.name}")
    return found[0]
