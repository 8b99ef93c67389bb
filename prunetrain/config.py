"""The settings of a training run: one frozen dataclass that gives flags, config files and recipes their names, defaults and help.

In: plain values from recipes, config files and flags. Out: a checked `TrainConfig`. Nothing here imports torch or click.
"""

import ast
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunetrain.errors import ConfigError, unknown_name
from prunetrain.method_settings import (
    FINETUNE,
    GROUP_LASSO,
    LR_RESTART,
    METHODS,
    METHODS_BY_SETTING,
    RETRAIN_MODES,
    REWINDING_MODES,
    check_method,
)
from prunetrain.synonyms import synonym_of

LASSO_INTERVAL = 8  # training steps between two proximal steps, with a target
FINE_TUNING_LR_FACTOR = 0.1  # learning rate of fine-tuning, as a share of the schedule's
AUTO, NORM, TAYLOR = "auto", "norm", "taylor"  # what ranks channels


LASSO_SETTINGS = (
    *("penalty_ratio", "target_macs", "target_by", "importance", "prune_interval", "threshold", "criterion", "residual"),
    *("lasso_groups", "lasso_step", "lasso_interval", "dynamic_batch", "max_batch_size"),
)
"""Fields of `TrainConfig` that have no effect unless the group lasso acts."""


SETTINGS_WITHOUT_RESULT_EFFECT = ("name", "output_dir", "download", "cache", "workers", "checkpoint_minutes", "keep", "keep_best")
"""Fields of `TrainConfig` that do not affect what a run computes."""


def setting(
    default: Any, help: str, *, choices: tuple[str, ...] = (), flags: tuple[str, ...] = (), bare: str | None = None, repeated: str = ""
) -> Any:
    """Declare a field, with what the command line needs to know about it.

    Args:
        default: the value if recipe, config file and flags do not set it; its type is the setting's type.
        help: one line, with the unit.
        choices: the allowed words, if the setting is restricted to some.
        flags: further spellings of the flag, such as `-b`.
        bare: what the flag means when no value follows it.
        repeated: for a tuple of `name=value` words given one per flag, the name of that flag without dashes.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "flags": flags, "bare": bare, "repeated": repeated})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes. Field names are the keys of config files and, with dashes, the flags."""

    model: str = setting("resnet20", "Network: NAME from the zoo, torchvision:NAME, timm:NAME or FILE.py:NAME; see --list-models.")
    model_args: tuple[str, ...] = setting((), "Argument for the network's constructor, NAME=VALUE; may be repeated.", repeated="model-arg")
    weights: str = setting(
        "",
        "Initial weights: a state dict in a .pt or .safetensors file, or `pretrained` for those of torchvision or timm, downloaded once.",
    )
    dataset: str = setting(
        "digits",
        "Data set.",
        choices=("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "folder", "npz", "fake"),
    )
    data_dir: str = setting(
        "data",
        "Folder of the data sets; for `folder`, the one with train/ and val/, or with --val-split one folder per class; "
        "for `npz`, the file.",
    )
    val_split: float = setting(
        0.0, "Share of each class's training images, in [0, 1), to validate on instead of the set's own validation images."
    )
    download: bool = setting(False, "Download the data set when it is absent.")
    cache: str = setting("", "Folder to cache the decoded images of `folder` in, if they fit into memory; batches stay the same.")
    image_size: int = setting(224, "Side, in pixels, of the square crop that `folder` and `fake` feed to the network.")
    grey: bool = setting(False, "Read the images of `folder` as greyscale: one channel instead of three.")
    epochs: int = setting(40, "Passes over the training data.")
    batch_size: int = setting(32, "Images per step, over all workers together; an epoch drops the last, incomplete batch.", flags=("-b",))
    dynamic_batch: bool = setting(False, "After a cut, grow the batch into the memory that it freed, and the learning rate in proportion.")
    max_batch_size: int = setting(0, "Upper limit of --dynamic-batch, in images per step; 0: four times --batch-size.")
    optimizer: str = setting("sgd", "Optimizer.", choices=("sgd", "adamw"))
    lr: float = setting(0.1, "Learning rate after warm-up.")
    momentum: float = setting(0.9, "Momentum of SGD; the first beta of AdamW.")
    nesterov: bool = setting(False, "Nesterov momentum.")
    weight_decay: float = setting(5e-4, "Weight decay.")
    schedule: str = setting("step", "Learning-rate schedule.", choices=("step", "cosine", "constant"))
    milestones: tuple[int, ...] = setting(
        (), "Epochs at which `step` lowers the learning rate; if not given, at 50% and 75% of the epochs."
    )
    lr_gamma: float = setting(0.1, "Factor on the learning rate at each milestone of `step`.")
    warmup_epochs: int = setting(0, "Epochs over which the learning rate rises linearly from zero.")
    label_smoothing: float = setting(0.0, "Label smoothing of the cross-entropy, in [0, 1).")
    class_weights: str = setting(
        "equal",
        "Weight of each image in the training loss: `equal`, or `balanced`: in inverse proportion to the size of its class.",
        choices=("equal", "balanced"),
    )
    aux_weight: float = setting(0.3, "Weight in the loss of each auxiliary head (GoogLeNet, Inception).")
    augment: bool = setting(True, "Random crops, and flips where they make sense.")
    penalty_ratio: float = setting(0.25, "Share of the group lasso in the loss at the first batch, in [0, 1); 0 trains without pruning.")
    target_macs: float = setting(
        0.5, "Share of the dense network's MACs to keep, in [0, 1): the weakest channels are faded out; 0: the lasso alone decides."
    )
    target_by: float = setting(0.25, "Share of the epochs after which --target-macs is reached and the lasso is released.")
    importance: str = setting(
        AUTO,
        "What ranks channels for --target-macs: `norm`, that of their weights, or `taylor`, a first-order expansion of the loss; "
        "`auto`: taylor when a trained network is pruned (`prunetrain prune`), else norm.",
        choices=(AUTO, NORM, TAYLOR),
    )
    prune_interval: int = setting(1, "Epochs between two reconfigurations.")
    threshold: float = setting(1e-4, "A slice is dead when all its absolute weights are below this; 0: none is.")
    criterion: str = setting(
        "either",
        "Which channels to cut: `union`, as in the paper; `either`, every channel that can be cut without loss.",
        choices=("union", "either"),
    )
    residual: str = setting(
        "union",
        "Residual streams: `union` keeps a channel as long as any block uses it; with `gating` each block reads and writes only its own.",
        choices=("union", "gating"),
    )
    lasso_groups: str = setting(
        "coupled", "Groups of the lasso: `slices`, filters and input slices; `coupled`, whole channels.", choices=("slices", "coupled")
    )
    lasso_step: str = setting(
        "proximal",
        "How the lasso acts: `subgradient`, in the gradient; `proximal`, after the optimizer's step.",
        choices=("subgradient", "proximal"),
    )
    lasso_interval: int = setting(
        0, "Training steps between two proximal steps, each scaled up by that number; 0: 8 with --target-macs, else 1."
    )
    method: str = setting(
        "group-lasso", "What makes the network smaller: the group lasso, or a method to compare it with.", choices=METHODS
    )
    rate: float = setting(0.0, "Share that a method removes, in [0, 1); for magnitude-std, the threshold in standard deviations.")
    layer_rates: tuple[str, ...] = setting((), "Rate for one layer, LAYER=RATE; 0 leaves it alone; may be repeated.", repeated="layer-rate")
    scope: str = setting("layer", "Rank weights within each layer, or over all layers together.", choices=("layer", "global"))
    structure: str = setting(
        "weights", "What magnitude and admm remove: weights, filters or input channels.", choices=("weights", "filters", "channels")
    )
    streams: str = setting(
        "apart", "Residual streams: `apart`, left alone; `together`, pruned by filter methods as well.", choices=("apart", "together")
    )
    norm_share: float = setting(0.0, "For fpgm, the share of the removed channels that is chosen by norm; published: 0.25.")
    slice: bool = setting(False, "Cut out units, and filters and channels that masks leave empty; filter methods always cut.")
    prune_at: int = setting(
        0,
        "Epoch after which group-lasso begins, or another method prunes for good; until then admm pulls and filter methods prune softly.",
    )
    rounds: int = setting(1, "Rounds of pruning and retraining, each of which removes the same share of what remains.")
    retrain: str = setting(
        FINETUNE,
        "How to retrain after each pruning: fine-tune, restart the learning rate, or rewind it or the weights.",
        choices=RETRAIN_MODES,
    )
    rewind_epoch: int = setting(0, "Epoch that lr-rewind and weight-rewind return to.")
    save_epochs: tuple[int, ...] = setting((), "Epochs after which to keep a checkpoint, to rewind to.")
    method_interval: int = setting(1, "Epochs between two updates of admm or two soft prunings.")
    rho: float = setting(1e-3, "Initial strength of admm's pull.")
    rho_factor: float = setting(1.0, "Factor on rho at every update.")
    rho_max: float = setting(1.0, "Upper limit of rho.")
    sync_batch_norm: bool = setting(False, "With several workers, compute BatchNorm statistics over the images of all of them.")
    round_to: str = setting(
        "auto", "Keep channel counts multiples of this; `auto`: up to 32 on the way to a target, else what is fastest on this machine."
    )
    amp: str = setting("off", "Automatic mixed precision.", choices=("off", "bfloat16", "float16"), bare="bfloat16")
    channels_last: bool = setting(False, "Channels-last memory format.")
    compile: str = setting(
        "off",
        "Compile the network with torch.compile, in one of its modes: on a GPU `reduce-overhead` and `max-autotune` replay CUDA graphs.",
        choices=("off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        bare="default",
    )
    device: str = setting("auto", "Device: auto, cpu, cuda, cuda:1.")
    workers: int = setting(
        -1,
        "Processes that decode images of a folder, per training process; -1: 2 on a CPU, on a GPU its share of the cores, up to 12.",
        flags=("-j",),
    )
    seed: int = setting(0, "Seed of initialisation, data order and augmentation.")
    checkpoint_minutes: float = setting(10.0, "Minutes between checkpoints within an epoch; 0: only at the end of each epoch.")
    keep: int = setting(
        0, "How many of the newest reconfiguration checkpoints to keep, beside last.pt; 0: all. Network files are always kept."
    )
    keep_best: bool = setting(False, "Also keep best.pt: the highest validation top-1 since the network was last cut or pruned.")
    name: str = setting("", "Name of the run; default: model and data set.")
    output_dir: str = setting(".", "Folder that holds generated_nets/ and checkpoints/.")

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            _check_value(item, getattr(self, item.name))
        _check_ranges(self)
        check_method(self)

    @property
    def proximal_interval(self) -> int:
        """Training steps between two proximal steps; a lasso without a target acts in every one."""
        return self.lasso_interval or (LASSO_INTERVAL if self.target_macs else 1)

    @property
    def uses_group_lasso(self) -> bool:
        """Whether the group lasso acts."""
        return self.method == GROUP_LASSO and self.penalty_ratio > 0

    @property
    def retrain_epochs(self) -> int:
        """Epochs of retraining after each pruning by a method."""
        return (self.epochs - self.prune_at) // self.rounds

    @property
    def rewinds(self) -> bool:
        """Whether a method rewinds the learning-rate schedule after each pruning."""
        return self.retrain in REWINDING_MODES

    @property
    def schedule_epochs(self) -> int:
        """Length of the learning-rate schedule: all epochs, or those before it restarts, or if it rewinds, those that a round ends with."""
        if self.retrain == LR_RESTART:
            return self.prune_at
        return self.rewind_epoch + self.retrain_epochs if self.rewinds else self.epochs

    @property
    def rates(self) -> dict[str, float]:
        """The layers with a rate of their own, and those rates."""
        return parse_arguments(self.layer_rates, "layer-rate")

    @property
    def granularity(self) -> int | None:
        """Number that channel counts are multiples of; None if it is to be measured."""
        return None if self.round_to == "auto" else int(self.round_to)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as a checkpoint stores them."""
        return dataclasses.asdict(self)


_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", tuple: "a list of whole numbers"}
_ARGUMENTS = "a table, or a list of name=value words"


def _check_value(item: dataclasses.Field[Any], value: Any) -> None:
    """Check a value's type, and that it is one of the allowed words."""
    kind: type = type(item.default)
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    repeated = item.metadata["repeated"]
    if fits and kind is tuple:
        member = str if repeated else int
        fits = all(isinstance(part, member) and not isinstance(part, bool) for part in value)
    choices = item.metadata["choices"]
    if not fits:
        wanted = f"one of {', '.join(choices)}" if choices else _ARGUMENTS if repeated else _TYPE_NAMES[kind]
        raise ConfigError(f"{_key(item.name)} must be {wanted}, not {value!r}")
    if repeated:
        parse_arguments(value, repeated)
    if choices and value not in choices:
        raise ConfigError(unknown_name(_key(item.name), value, choices))


def _key(name: str) -> str:
    """The name of a field as users write it."""
    return name.replace("_", "-")


def flag_of(name: str) -> str:
    """The flag of a field."""
    repeated: str = TrainConfig.__dataclass_fields__[name].metadata["repeated"]
    return f"--{repeated or _key(name)}"


_EXAMPLES = {"model-arg": "width=2", "layer-rate": "fc=0.5"}


def parse_arguments(words: Iterable[str], flag: str = "model-arg") -> dict[str, Any]:
    """Parse `("width=2", "act=relu")` into {"width": 2, "act": "relu"}.

    A value that is not a Python literal is a string. `flag` is for error messages.

    Raises:
        ConfigError: for a word that is not name=value, or a name that is given twice.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{flag} must be NAME=VALUE, such as {_EXAMPLES[flag]}, not {word!r}")
        if name in arguments:
            raise ConfigError(f"{flag} {name} is given twice")
        arguments[name] = _literal(value)
    return arguments


def argument_words(arguments: Mapping[str, Any], flag: str = "model-arg") -> tuple[str, ...]:
    """Return words that `parse_arguments` reads back, with one spelling per value, so that equal settings are equal words.

    Raises:
        ConfigError: for a value that a word cannot express, such as a date.
    """
    for name, value in arguments.items():
        if _literal(_spelled(name, value, flag)) != value:
            raise ConfigError(f"{flag}s: {name} must be a number, string, list or table, not {value!r}")
    return tuple(f"{name}={value!r}" for name, value in arguments.items())


def _spelled(name: str, value: Any, flag: str) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # Python refuses to write integers of more than 4,300 digits
        raise ConfigError(f"{flag}s: {name} is too large") from None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


_RANGES: dict[str, tuple[float, float]] = {  # lowest and highest value, both allowed
    "image_size": (1, 4096),
    "epochs": (1, 1_000_000),
    "batch_size": (1, 10_000_000),
    "max_batch_size": (0, 10_000_000),
    "lr_gamma": (0, 1),
    "target_by": (0, 1),
    "warmup_epochs": (0, 1_000_000),
    "prune_interval": (1, 1_000_000),
    "lasso_interval": (0, 1_000_000),
    "workers": (-1, 1024),
    "keep": (0, 1_000_000),
    "norm_share": (0, 1),
    "prune_at": (0, 1_000_000),
    "rounds": (1, 1000),
    "rewind_epoch": (0, 1_000_000),
    "method_interval": (1, 1_000_000),
    "seed": (0, 2**32 - 1),
}

_OPEN_RANGES: dict[str, tuple[float, float]] = {  # lowest allowed value, and a limit that is not allowed itself
    "lr": (0, float("inf")),
    "momentum": (0, 1),
    "weight_decay": (0, float("inf")),
    "label_smoothing": (0, 1),
    "val_split": (0, 1),
    "aux_weight": (0, float("inf")),
    "penalty_ratio": (0, 1),
    "target_macs": (0, 1),
    "threshold": (0, float("inf")),
    "rate": (0, float("inf")),
    "rho": (0, float("inf")),
    "rho_factor": (1, float("inf")),
    "rho_max": (0, float("inf")),
    "checkpoint_minutes": (0, float("inf")),
}


def _check_ranges(config: TrainConfig) -> None:
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(config, name) <= high:
            raise ConfigError(f"{_key(name)} must be from {low} to {high}, not {getattr(config, name)}")
    for name, (low, high) in _OPEN_RANGES.items():
        if not low <= getattr(config, name) < high:
            limit = "" if high == float("inf") else f" and below {high}"
            raise ConfigError(f"{_key(name)} must be a finite number of at least {low}{limit}, not {getattr(config, name)}")
    if not re.fullmatch(r"auto|[1-9][0-9]{0,5}", config.round_to):
        raise ConfigError(f"round-to must be auto or a whole number from 1, not {config.round_to!r}")
    if 0 < config.max_batch_size < config.batch_size:
        raise ConfigError(f"max-batch-size {config.max_batch_size} is below the initial batch size, {config.batch_size}")
    if config.nesterov and (config.optimizer != "sgd" or config.momentum == 0):
        raise ConfigError("nesterov needs --optimizer sgd and a momentum above 0")
    if list(config.milestones) != sorted(set(config.milestones)) or any(epoch < 1 for epoch in config.milestones):
        raise ConfigError(f"milestones must be epochs from 1, each later than the one before, not {','.join(map(str, config.milestones))}")
    if any(epoch < 0 for epoch in config.save_epochs):
        raise ConfigError(f"save-epochs must be epochs from 0, not {','.join(map(str, config.save_epochs))}")


_DATASETS_BY_SETTING = {  # setting: the data sets that it affects
    "data_dir": ("folder", "npz", "mnist", "fashion-mnist", "cifar10", "cifar100"),
    "download": ("mnist", "fashion-mnist", "cifar10", "cifar100"),
    "image_size": ("folder", "fake"),
    "grey": ("folder",),
}


def check_ignored_settings(explicit: Mapping[str, Any], config: TrainConfig) -> None:
    """Refuse settings that the user asked for and a new run would ignore.

    Args:
        explicit: settings that were given individually, not by defaults or a recipe.
        config: all settings.

    Raises:
        ConfigError: for a setting that has no effect on the data set or the method, and for a target without pruning.
    """
    for name, sets in _DATASETS_BY_SETTING.items():
        if name in explicit and getattr(config, name) != getattr(TrainConfig, name) and config.dataset not in sets:
            near = " or ".join(sets[:2])
            raise ConfigError(f"{flag_of(name)} has no effect with --dataset {config.dataset}: did you mean --dataset {near}?")
    for name, methods in METHODS_BY_SETTING.items():
        if name in explicit and getattr(config, name) != getattr(TrainConfig, name) and config.method not in methods:
            raise ConfigError(f"{flag_of(name)} has no effect with --method {config.method}, only with {', '.join(methods)}: leave it out")
    if explicit.get("importance") == TAYLOR and config.method == GROUP_LASSO and config.target_macs == 0:
        raise ConfigError("--importance has no effect with --target-macs 0, where the lasso decides what goes: leave one of them out")
    if explicit.get("target_macs") and config.method == GROUP_LASSO and config.penalty_ratio == 0:
        raise ConfigError("--penalty-ratio 0 trains without pruning and never reaches --target-macs: leave one of them out")


def check_resume(resume: object) -> None:
    """Refuse a run's name or file as Python's `resume`, which as a true value would resume or start another run.

    Raises:
        ConfigError: for anything but True and False.
    """
    if not isinstance(resume, bool):
        raise ConfigError(f"resume must be True or False, not {resume!r}: to resume a run, give its name as name, and resume=True")


_PATHS = ("model", "weights", "data_dir", "cache", "output_dir")  # settings that may begin with `~`
_FLAGS_ONLY = ("resume", "gpus", "nproc", "max_restarts", "tensorboard")  # flags of `train` that say how a run is started


def settings_from(values: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Turn keys into field names and lists into tuples, and check each value on its own.

    Args:
        values: keys with dashes or underscores, as a recipe or config file has them.
        source: where the values come from, for error messages.

    Raises:
        ConfigError: for an unknown key (with the nearest known ones), a key given twice, or a value of the wrong type.
    """
    fields = {item.name: item for item in dataclasses.fields(TrainConfig)}
    settings: dict[str, Any] = {}
    try:
        for key, value in values.items():
            name = key.replace("-", "_")
            if name in _FLAGS_ONLY:
                raise ConfigError(f"{key} is not a setting but says how a run is started: give it as a flag, --{_key(name)}")
            if name not in fields:
                raise ConfigError(unknown_name("setting", key, map(_key, fields), synonym_of(key)))
            if name in settings:
                raise ConfigError(f"{_key(name)} is given twice, with a dash and with an underscore")
            settings[name] = tuple(value) if isinstance(value, list) else value
            if name == "round_to" and isinstance(value, int) and not isinstance(value, bool):
                settings[name] = str(value)
            if name == "compile" and isinstance(value, bool):
                settings[name] = "default" if value else "off"
            if name in _PATHS and isinstance(value, str | Path):
                settings[name] = os.path.expanduser(value)
            flag = fields[name].metadata["repeated"]
            if flag and isinstance(value, dict):
                settings[name] = argument_words(value, flag)
            _check_value(fields[name], settings[name])
            if flag:
                settings[name] = argument_words(parse_arguments(settings[name], flag), flag)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from error
    return settings


def build_config(*layers: Mapping[str, Any]) -> TrainConfig:
    """Merge settings, with later ones overriding earlier ones, and check the result.

    Keys may be written with dashes or underscores; lists become tuples.

    Raises:
        ConfigError: for an unknown key (with the nearest known ones) or a value out of range.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= settings_from(layer)
    return TrainConfig(**merged)
