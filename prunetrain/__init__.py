"""prunetrain trains image-classification CNNs and makes them smaller while they train.

The public names are imported on first use, so that `import prunetrain` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunetrain.errors import PruneTrainError
    from prunetrain.graph.layergraph import LayerGraph
    from prunetrain.graph.load import load_network
    from prunetrain.graph.parse import parse
    from prunetrain.graph.render import render
    from prunetrain.graph.trace import trace
    from prunetrain.library.prune import prune
    from prunetrain.library.pruner import PruneTrain, Reconfigured
    from prunetrain.library.train import train
    from prunetrain.training.events import Observer
    from prunetrain.training.prediction import Guess, Prediction, predict
    from prunetrain.training.run import Outcome

__version__ = "0.1.0"

__all__ = [
    "Guess",
    "LayerGraph",
    "Observer",
    "Outcome",
    "Prediction",
    "PruneTrain",
    "PruneTrainError",
    "Reconfigured",
    "load_network",
    "parse",
    "predict",
    "prune",
    "render",
    "trace",
    "train",
]

_MODULE_BY_NAME = {
    "Guess": "prunetrain.training.prediction",
    "LayerGraph": "prunetrain.graph.layergraph",
    "Observer": "prunetrain.training.events",
    "Outcome": "prunetrain.training.run",
    "Prediction": "prunetrain.training.prediction",
    "PruneTrain": "prunetrain.library.pruner",
    "PruneTrainError": "prunetrain.errors",
    "Reconfigured": "prunetrain.library.pruner",
    "load_network": "prunetrain.graph.load",
    "parse": "prunetrain.graph.parse",
    "predict": "prunetrain.training.prediction",
    "prune": "prunetrain.library.prune",
    "render": "prunetrain.graph.render",
    "trace": "prunetrain.graph.trace",
    "train": "prunetrain.library.train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module 'prunetrain' has no attribute {name!r}")
    return getattr(import_module(_MODULE_BY_NAME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]
