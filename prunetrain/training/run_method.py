"""The method that acts in a run's training steps, chosen by the settings and the prunings done so far, and its state in a checkpoint.

In: a run. Out: a `TrainingMethod` for the loop, and the state to resume from. Before a method prunes for good, ADMM pulls at the weights
or filters are pruned softly; afterwards masks hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from prunetrain import methods
from prunetrain.config import TAYLOR, TrainConfig
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.method_settings import ADMM, GROUP_LASSO
from prunetrain.methods.admm import Admm, AdmmSettings
from prunetrain.methods.admm_steps import projection
from prunetrain.methods.counting import rates_of_rounds
from prunetrain.methods.held_masks import HeldMasks
from prunetrain.methods.masks import Masks
from prunetrain.methods.options import Options
from prunetrain.methods.rewinding import WEIGHT_REWINDING_MODES
from prunetrain.methods.soft_filters import SoftFilters
from prunetrain.methods.taylor import TaylorImportance
from prunetrain.methods.training_method import EARLY, KEEP, MethodState, TrainingMethod

_ROUND, _LAST_EPOCH = "round", "settled"
_SIZE = "channels of "


@dataclass
class RunMethod:
    """A run's method and what it remembers.

    `rounds` prunings are done; `last_epoch` is the last epoch at whose end the method has acted; `early` holds the weights to rewind to;
    `sizes` the number of channels of each layer before the first of several cuts.
    """

    method: TrainingMethod = field(default_factory=TrainingMethod)
    rounds: int = 0
    last_epoch: int = 0
    early: Mapping[str, Tensor] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def end_epoch_(self, epoch: int) -> None:
        """Let the method act at the end of an epoch, but only once: an interrupted end of an epoch is repeated on resume."""
        if epoch > self.last_epoch:
            self.method.after_epoch_(epoch)
            self.last_epoch = epoch

    def state_dict(self) -> MethodState:
        """Return everything that `build_run_method` needs to resume."""
        kept = self.method.state_dict()
        tensors = kept["tensors"] | ({EARLY: dict(self.early)} if self.early else {})
        own = {_ROUND: self.rounds, _LAST_EPOCH: self.last_epoch, **{f"{_SIZE}{name}": size for name, size in self.sizes.items()}}
        return {"tensors": tensors, "numbers": kept["numbers"] | own}


_NO_SIZES: Mapping[str, int] = {}


def state_after_pruning(
    *, masks: Masks | None, early: Mapping[str, Tensor], rounds: int, epoch: int, sizes: Mapping[str, int] = _NO_SIZES
) -> MethodState:
    """Return the method's state right after a pruning, for `build_run_method` to resume from."""
    own = RunMethod(TrainingMethod(), rounds, epoch, early, sizes).state_dict()
    return {"tensors": own["tensors"] | ({KEEP: dict(masks.keep)} if masks else {}), "numbers": own["numbers"]}


def rounds_done(state: MethodState) -> int:
    """The number of prunings that a run has done."""
    return int(state["numbers"].get(_ROUND, 0))


def channels_before_pruning(state: MethodState) -> dict[str, int]:
    """The number of channels of each layer before the first of several cuts."""
    return {name.removeprefix(_SIZE): int(size) for name, size in state["numbers"].items() if name.startswith(_SIZE)}


def early_weights(state: MethodState) -> Mapping[str, Tensor]:
    """The weights that a run rewinds to; empty if there are none."""
    return state["tensors"].get(EARLY, {})


def next_amount(config: TrainConfig, rounds: int) -> float:
    """How much a method removes at its next pruning; with several rounds, the rate grows from round to round.

    Args:
        config: only `method`, `rate` and `rounds` matter.
        rounds: number of prunings done.
    """
    grows = config.method == ADMM or methods.entry(config.method).amount == "rate"
    return rates_of_rounds(config.rate, config.rounds)[rounds] if grows else config.rate


def next_options(config: TrainConfig, rounds: int, earlier: Masks | None = None) -> Options:
    """The options of a method's next pruning, after `rounds` prunings; rates of single layers grow as in `next_amount`."""
    return Options(
        layer_rates={layer: rates_of_rounds(rate, config.rounds)[rounds] for layer, rate in config.rates.items()},
        scope=config.scope,
        structure=config.structure,
        streams=config.streams,
        norm_share=config.norm_share,
        granularity=config.granularity or 1,
        seed=config.seed,
        earlier=earlier,
    )


def build_run_method(config: TrainConfig, graph: LayerGraph, model: nn.Module, epoch: int, saved: MethodState) -> RunMethod:
    """Build what acts in a run's training.

    Args:
        config: the settings.
        graph: the network.
        model: the network; training changes its weights in place.
        epoch: number of epochs done.
        saved: the method's state in a checkpoint; empty for a new run.

    Raises:
        ConfigError: for a method that does not work on this network.
        KeyError, RuntimeError, TypeError, ValueError: if the saved state does not fit the method.
    """
    if config.method == GROUP_LASSO:
        return RunMethod(_importance(config, graph, model, saved), last_epoch=epoch)
    weights = dict(model.named_parameters())
    rounds = rounds_done(saved)
    method = HeldMasks(weights, Masks({})) if rounds else _method_before_pruning(config, graph, weights)
    device = next(iter(weights.values())).device
    # Copies: right after a pruning, some of the checkpoint's tensors are both these and the network's, which training changes.
    early = {name: tensor.to(device, copy=True) for name, tensor in early_weights(saved).items()}
    if epoch == config.rewind_epoch and rounds == 0 and not early and config.retrain in WEIGHT_REWINDING_MODES:
        early = copy_state_dict(model)
    run_method = RunMethod(method, rounds, int(saved["numbers"].get(_LAST_EPOCH, epoch)), early, channels_before_pruning(saved))
    own: MethodState = {
        "tensors": {kind: tensors for kind, tensors in saved["tensors"].items() if kind != EARLY},
        "numbers": {
            name: number for name, number in saved["numbers"].items() if name not in (_ROUND, _LAST_EPOCH) and not name.startswith(_SIZE)
        },
    }
    if own["tensors"] or own["numbers"]:
        method.load_state_dict(own)
    return run_method


def _importance(config: TrainConfig, graph: LayerGraph, model: nn.Module, saved: MethodState) -> TrainingMethod:
    """What ranks the channels of a group lasso with a target, unless their weights alone do."""
    if not (config.uses_group_lasso and config.target_macs and config.importance == TAYLOR):
        return TrainingMethod()
    method = TaylorImportance(graph, dict(model.named_parameters()))
    method.load_state_dict(saved)
    return method


def _method_before_pruning(config: TrainConfig, graph: LayerGraph, weights: Mapping[str, Tensor]) -> TrainingMethod:
    """The method that acts until the first pruning, at that pruning's rate."""
    if config.prune_at == 0:
        return TrainingMethod()
    rate, options = next_amount(config, rounds=0), next_options(config, rounds=0)
    if config.method == ADMM:
        settings = AdmmSettings(rho=config.rho, rho_factor=config.rho_factor, rho_max=config.rho_max, interval=config.method_interval)
        return Admm(weights, projection(graph, rate, options), settings)
    if methods.entry(config.method).decides == "channels":
        return SoftFilters(
            graph, weights, method=config.method, rate=rate, options=options, interval=config.method_interval, last=config.prune_at
        )
    return TrainingMethod()


def copy_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's state dict, which training does not change."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
