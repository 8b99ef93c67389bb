"""Call a class or function that makes a network, and report on one line what goes wrong.

In: a class or function, and arguments by name. Out: the torch module that it makes.
"""

import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunetrain.errors import ConfigError

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def construct(
    spec: str, function: Callable[..., Any], arguments: Mapping[str, Any], *, takes: Iterable[str] | None, folder: Path | None = None
) -> nn.Module:
    """Call a class or function, which must return a network.

    Args:
        spec: the user's name for the network.
        function: the class or function.
        arguments: its arguments.
        takes: the names of the arguments that it takes, for the error message; None if they are not known.
        folder: the folder of the user's own code, so that an error names a line of it.

    Raises:
        ConfigError: for an argument that the function does not take, whatever else goes wrong in it, and a result that is not a network.
    """
    try:
        made = function(**arguments)
    except (Exception, SystemExit) as error:
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and unexpected and unexpected[1] in arguments:
            raise no_such_argument(spec, unexpected[1], takes) from error
        raise ConfigError(f"{spec} cannot be built: {describe_error(error, folder)}") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"{spec} makes a {type(made).__name__}, not a torch.nn.Module: name a network's class, or a function that returns one"
        )
    return made


def no_such_argument(spec: str, name: str, takes: Iterable[str] | None) -> ConfigError:
    """Return the error for an argument that a constructor does not take."""
    known = "" if takes is None else f"; it takes {', '.join(takes) or 'none'}"
    return ConfigError(f"{spec} takes no argument {name!r}{known}")


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function or constructor by name; none if it has no signature."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def accepts_any_argument(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether any argument name is allowed: there is a `**kwargs`, or nothing is known."""
    return not parameters or any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())


def required_parameters(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """The names of the parameters that have no default."""
    return [name for name, item in parameters.items() if item.default is item.empty and item.kind not in _VARIADIC]


def optional_parameters(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """The names of the parameters that have a default."""
    return [name for name, item in parameters.items() if item.default is not item.empty]


@dataclass(frozen=True)
class Pretrained:
    """The weights that a library has for a network.

    Attributes:
        tensors: the state dict.
        title: the name of the weights in messages.
        statistics: `mean` and `std` of each channel, by which pixels in [0, 1] were normalised in training.
        arguments: arguments of the network's constructor that these weights need.
    """

    tensors: Mapping[str, Tensor]
    title: str
    statistics: Mapping[str, Sequence[float]]
    arguments: Mapping[str, Any] = field(default_factory=dict)


def fetch_pretrained(spec: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Make a network with its library's pretrained weights, which may have to be downloaded.

    Raises:
        ConfigError: if that fails for any reason.
    """
    try:
        return make()
    except Exception as error:  # from the connection, the disk, the hub's package or the library
        raise ConfigError(
            f"{spec}: its pretrained weights cannot be loaded ({describe_error(error)}): "
            "check the connection, or give a file with --weights FILE"
        ) from None


def returned_class(function: Callable[..., Any]) -> type | None:
    """Return the network class in a function's return annotation, if there is one."""
    try:
        returned = inspect.signature(function).return_annotation
    except (TypeError, ValueError):
        return None
    return returned if inspect.isclass(returned) and issubclass(returned, nn.Module) else None


def describe_error(error: BaseException, folder: Path | None = None) -> str:
    """Describe an error on one line, after `file:line` of the user's own code if it was involved."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    text = " ".join(text.split())
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if folder and _is_user_code(folder, Path(frame.filename))]
    return f"{own[-1].filename}:{own[-1].lineno}: {text}" if own else text


def _is_user_code(folder: Path, file: Path) -> bool:
    """Whether a file is the user's own, not one of a package installed in an environment in the same folder."""
    return folder in file.parents and "site-packages" not in file.parts
