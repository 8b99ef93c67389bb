"""Carry an optimizer over to the parameters of a smaller network.

The optimizer stays the same object: its groups get the new parameters, and its state is cut. So whatever holds it (schedulers, a
GradScaler, hooks) keeps working.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Adafactor, Optimizer

from prunetrain.channels.slicing import slice_optimizer_state
from prunetrain.channels.sources import Source
from prunetrain.errors import ConfigError
from prunetrain.library.network import Network
from prunetrain.training.optimizer_state import in_format_of


@dataclass(frozen=True)
class ParameterSwap:
    """New parameters for each group of an optimizer, and their state; nothing changes until `apply_` is called."""

    groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]

    def apply_(self, optimizer: Optimizer) -> None:
        """Give the optimizer these parameters and this state."""
        for group, changed in zip(optimizer.param_groups, self.groups, strict=True):
            group.update(changed)
        for parameter in [key for key in optimizer.state if isinstance(key, Tensor)]:  # state under other keys belongs to all parameters
            del optimizer.state[parameter]
        optimizer.state.update(self.state)


def check_optimizer(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse an optimizer that cannot be cut along with a network.

    Raises:
        ConfigError: if it is not a torch optimizer, wraps another one, keeps one state for all parameters, has no learning rate,
            maximizes, has none of these parameters, or has uninitialised ones.
    """
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"{type(optimizer).__name__} is not a torch.optim.Optimizer")
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        raise ConfigError("ZeroRedundancyOptimizer has only part of the state in each process, which cannot be cut: use a plain optimizer")
    _check_steps_itself(optimizer)
    if isinstance(optimizer, LBFGS):
        raise ConfigError("LBFGS keeps a single state for all parameters, which cannot be cut: use another optimizer")
    if not all("lr" in group for group in optimizer.param_groups):
        raise ConfigError(f"{type(optimizer).__name__} has no learning rate 'lr', which sets the size of the lasso's step")
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ConfigError("the lasso needs a loss that is minimised: use maximize=False")
    if not set(parameters.values()) & {parameter for group in optimizer.param_groups for parameter in group["params"]}:
        raise ConfigError("the optimizer has none of the model's parameters: make it from model.parameters()")
    if any(is_lazy(parameter) for group in optimizer.param_groups for parameter in group["params"]):
        raise ConfigError("the optimizer has parameters of a lazy layer that no batch reaches: leave out these parameters, or the layer")


def _check_steps_itself(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose steps another one makes: hooks on it do not run, and its state is not the one to cut.

    Wrappers that share the other one's hooks, such as Lightning's, are fine.

    Raises:
        ConfigError: for such an optimizer.
    """
    hooks = vars(optimizer).get("_optimizer_step_post_hooks")
    for name, inner in vars(optimizer).items():
        if isinstance(inner, Optimizer) and (hooks is None or vars(inner).get("_optimizer_step_post_hooks") is not hooks):
            raise ConfigError(
                f"{type(optimizer).__name__} only wraps {type(inner).__name__}, which makes the steps: give its attribute {name!r}, "
                "and step the wrapper as before"
            )


def prepare_swap(optimizer: Optimizer, network: Network, smaller: Network, sources: Mapping[str, Source]) -> ParameterSwap:
    """Return the groups and state that an optimizer has after a cut. Parameters of other modules stay as they are.

    Cuts identify parameters by name, torch's packed state by number. So every parameter of the optimizer gets a name, its state is cut as
    in a run, and the result is unpacked by name again.

    Args:
        optimizer: over some or all parameters of the network, in any groups.
        network: the network before the cut.
        smaller: the network after the cut.
        sources: `Cut.sources`.

    Raises:
        ConfigError: if the optimizer keeps state that cannot be cut with its parameter.
    """
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    name_of, foreign = _name_parameters(members, network)
    new = dict(smaller.module.named_parameters())
    sources = {name: Source(name) for name in foreign} | dict(sources)
    names = [
        name
        for group in optimizer.param_groups
        for name in _names_in_group([name_of[parameter] for parameter in group["params"]], foreign, new, sources)
    ]
    tensors = [foreign[name] if name in foreign else new[name] for name in names]
    shapes = {name: parameter.shape for parameter, name in name_of.items()}
    packed = slice_optimizer_state(optimizer.state_dict(), [name_of[parameter] for parameter in members], names, sources, shapes)
    groups: list[dict[str, Any]] = []
    given = _given_names(optimizer)
    for group in packed["param_groups"]:
        groups.append({"params": [tensors[index] for index in group["params"]]})
        if "param_names" in group:
            groups[-1]["param_names"] = [given[foreign[name]] if name in foreign else name for name in group["param_names"]]
    state: dict[Tensor, dict[str, Any]] = {}
    for index, entries in packed["state"].items():
        source = sources[names[index]]
        cut = _Parameter(type(optimizer).__name__, source, shapes[source.name], tensors[index])
        state[tensors[index]] = {key: cut.entry(key, entry) for key, entry in entries.items()}
        if isinstance(optimizer, Adafactor) and tensors[index].dim() > 1:
            _factor_variance_(state[tensors[index]])
    return ParameterSwap(groups, state)


def _factor_variance_(entries: dict[str, Any]) -> None:
    """Give Adafactor rows and columns for the bias that a removed branch leaves, (channels, 1, 1), in place of the variance of (channels,).

    The variance is their product over their mean along the rows, so both are the variance itself.
    """
    if "variance" in entries:
        variance = entries.pop("variance")
        entries |= {"row_var": variance, "col_var": variance.clone()}


def _name_parameters(members: Iterable[nn.Parameter], network: Network) -> tuple[dict[nn.Parameter, str], dict[str, nn.Parameter]]:
    """Name each parameter of an optimizer and of a network; return these names, and by name the parameters that only the optimizer has.

    The network's parameters have the names of its graph. The other names contain a space, which no name in a graph does.
    """
    name_of = {parameter: f"unused {number}" for number, parameter in enumerate(network.module.parameters())}  # no output depends on these
    name_of |= {parameter: name for name, parameter in network.parameters().items()}
    foreign = {f"foreign {number}": parameter for number, parameter in enumerate(members) if parameter not in name_of}
    return name_of | {parameter: name for name, parameter in foreign.items()}, foreign


def _given_names(optimizer: Optimizer) -> dict[nn.Parameter, str]:
    """The names that an optimizer's parameters were given, in groups made from named parameters."""
    return {
        parameter: name
        for group in optimizer.param_groups
        for parameter, name in zip(group["params"], group.get("param_names", ()), strict=False)
    }


def _names_in_group(
    old_names: list[str], foreign: Mapping[str, Tensor], new: Mapping[str, Tensor], sources: Mapping[str, Source]
) -> Iterator[str]:
    """Yield the names of a group after the cut: foreign ones in their old places, the network's own between them in their new order."""
    coming = (name for name in new if sources[name].name in old_names)
    for name in old_names:
        if name in foreign:
            yield name
        else:
            yield from islice(coming, 1)
    yield from coming


@dataclass(frozen=True)
class _Parameter:
    """A parameter after a cut, and the shape before it: handles the entries that `slice_optimizer_state` leaves as they were."""

    optimizer: str
    source: Source
    shape_before: torch.Size
    parameter: nn.Parameter

    def entry(self, key: str, entry: Any) -> Any:
        """Return a state entry that fits the parameter.

        Raises:
            ConfigError: if it is not clear how the entry's shape follows from the parameter's.
        """
        parameter = self.parameter
        if isinstance(entry, Tensor) and entry.shape == parameter.shape:
            return in_format_of(parameter, entry)
        if parameter.shape == self.shape_before or not _holds_numbers(entry):
            return entry
        if isinstance(entry, Tensor) and self._is_reduced(entry.shape):
            rows = {dim: rows for dim, rows in self.source.rows.items() if entry.shape[dim] > 1}
            return Source(self.source.name, rows).gather(entry)
        raise ConfigError(
            f"{self.optimizer} keeps {key!r} of {self.source.name} in a form that cannot be cut with the parameter: "
            "use an optimizer whose state has the shapes of its parameters"
        )

    def _is_reduced(self, shape: torch.Size) -> bool:
        """Whether an entry has some of the parameter's dimensions and length 1 in the others, like Adafactor's rows and columns."""
        before = self.shape_before
        return self.source.shape is None and len(shape) == len(before) and all(a in (1, b) for a, b in zip(shape, before, strict=True))


def _holds_numbers(entry: Any) -> bool:
    """Whether an entry is, or may hold, more than one number."""
    return entry.numel() > 1 if isinstance(entry, Tensor) else isinstance(entry, list | tuple | dict)
