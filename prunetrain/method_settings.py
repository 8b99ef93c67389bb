"""The settings of the pruning methods: the methods' names, and which settings can be combined.

In: a `TrainConfig`. Out: nothing, or an error that says what to do.
"""

from typing import TYPE_CHECKING

from prunetrain.errors import ConfigError

if TYPE_CHECKING:
    from prunetrain.config import TrainConfig

GROUP_LASSO = "group-lasso"
ADMM = "admm"
METHODS = (GROUP_LASSO, "2:4", ADMM, "filter-l1", "filter-l2", "fpgm", "magnitude", "magnitude-std", "random", "random-weights", "unit")
WEIGHT_METHODS = (ADMM, "2:4", "magnitude", "magnitude-std", "random-weights")
"""Methods that remove single weights; of these, `STRUCTURED_METHODS` can also remove filters or input channels."""

STRUCTURED_METHODS = (ADMM, "magnitude")
FILTER_METHODS = ("filter-l1", "filter-l2", "fpgm", "random", "unit")
METHOD_SETTINGS = (
    *("layer_rates", "scope", "structure", "streams", "norm_share", "slice", "rounds", "retrain", "rewind_epoch"),
    *("method_interval", "rho", "rho_factor", "rho_max"),
)
"""Fields of `TrainConfig` that a method takes beside its rate."""

METHODS_BY_SETTING = {
    "scope": (ADMM, "magnitude", "random-weights"),
    "structure": STRUCTURED_METHODS,
    "streams": FILTER_METHODS,
    "norm_share": ("fpgm",),
    "method_interval": (ADMM, *FILTER_METHODS),
    "rho": (ADMM,),
    "rho_factor": (ADMM,),
    "rho_max": (ADMM,),
}
"""The methods that read a setting, for those of `METHOD_SETTINGS` that only some read."""

FINETUNE, LR_RESTART = "finetune", "lr-restart"
REWINDING_MODES = ("lr-rewind", "weight-rewind", "init-rewind")
RETRAIN_MODES = (FINETUNE, LR_RESTART, *REWINDING_MODES)
NOTHING_REWOUND = f"{GROUP_LASSO} continues training and rewinds nothing: use --retrain {LR_RESTART} or {FINETUNE} with it"


def check_share(what: str, rate: object) -> None:
    """Check that a setting is a share that can be removed.

    Raises:
        ConfigError: for anything but a number in [0, 1).
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ConfigError(f"{what} must be at least 0 and below 1, the fraction to remove, not {rate}")


def check_method(config: "TrainConfig") -> None:
    """Check that the settings of the method can be combined.

    Raises:
        ConfigError: if they cannot.
    """
    for layer, rate in config.rates.items():
        check_share(f"layer-rate {layer}", rate)
    if config.method == GROUP_LASSO:
        foreign = [name for name in ("rate", *METHOD_SETTINGS) if getattr(config, name) != getattr(type(config), name)]
        if config.retrain == LR_RESTART:
            foreign.remove("retrain")
        if config.retrain in REWINDING_MODES:
            raise ConfigError(NOTHING_REWOUND)
        if foreign:
            raise ConfigError(f"{foreign[0].replace('_', '-')} is for the other methods: choose one with --method, or leave it out")
        if config.prune_at > config.epochs:
            raise ConfigError(f"--prune-at {config.prune_at} comes after the run's {config.epochs} epochs: give more --epochs")
        return
    _check_other(config)


def _check_other(config: "TrainConfig") -> None:
    """Check the settings of a method other than the group lasso."""
    if config.method != "magnitude-std":
        check_share("rate", config.rate)
    if config.slice and config.method in WEIGHT_METHODS and (config.structure == "weights" or config.method not in STRUCTURED_METHODS):
        hint = ", or give --structure filters" if config.method in STRUCTURED_METHODS else ""
        raise ConfigError(f"{config.method} removes single weights, which cannot be cut: leave out --slice{hint}")
    if config.slice and config.method in STRUCTURED_METHODS and config.rounds > 1:
        raise ConfigError(f"--slice works with one round of {config.method} only: leave it out, or prune the pruned network again")
    if config.dynamic_batch:
        raise ConfigError(f"--dynamic-batch works with the group lasso only: leave it out with --method {config.method}")
    left = config.epochs - config.prune_at
    if left < 0 or left % config.rounds or (config.rounds > 1 and left == 0):
        raise ConfigError(
            f"of {config.epochs} epochs, {left} come after --prune-at {config.prune_at}: "
            f"they must divide evenly among {config.rounds} rounds"
        )
    if config.method == ADMM and config.prune_at == 0:
        raise ConfigError("admm acts before it prunes: give --prune-at, the number of epochs in which it acts")
    if config.method == ADMM and not 0 < config.rho <= config.rho_max:
        raise ConfigError(f"rho must be above 0 and at most rho-max, {config.rho_max}, not {config.rho}")
    if config.retrain == "init-rewind" and config.rewind_epoch:
        raise ConfigError(f"init-rewind returns to epoch 0, not {config.rewind_epoch}: use weight-rewind for that")
    if config.retrain in REWINDING_MODES and (left == 0 or config.rewind_epoch > config.prune_at):
        raise ConfigError(
            f"{config.retrain} needs epochs after --prune-at, which is {config.prune_at} of {config.epochs}, "
            f"and a rewind-epoch of at most that, not {config.rewind_epoch}"
        )
