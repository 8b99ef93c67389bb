"""`path/to/file.py:NAME`: a network from the user's own file. The file is imported, so its code runs, as the user asked for.

In: the file, the name of a class or function in it, and arguments. Out: the torch module that it makes.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import util
from importlib.machinery import ModuleSpec
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from torch import nn

from prunetrain.errors import ConfigError, unknown_name
from prunetrain.files import resolve_links
from prunetrain.models.constructing import (
    accepts_any_argument,
    construct,
    describe_error,
    no_such_argument,
    parameters_of,
    required_parameters,
)
from prunetrain.models.lazy_layers import initialise_lazy_layers
from prunetrain.zoo import ImageShape

_CLASS_COUNTS = ("num_classes", "num_class", "n_classes", "n_class", "nb_classes", "class_num")
"""Names by which constructors in use take the number of classes."""


def build(spec: str, *, input_shape: ImageShape, num_classes: int, given: Mapping[str, Any]) -> nn.Module:
    """Call the class or function of a file and initialise the lazy layers of the network that it makes.

    Args:
        spec: `FILE.py:NAME`.
        input_shape: (C, H, W) of one image; passed on if NAME takes an `input_shape`.
        num_classes: passed on if NAME takes it, by this name or another of `_CLASS_COUNTS`.
        given: the arguments of NAME; they override these two.

    Raises:
        ConfigError: if the file or the name does not exist, the file fails, the arguments do not fit, or a network with lazy layers fails
            with such images.
    """
    path, _, name = (f"{spec}:" if spec.endswith(".py") else spec).rpartition(":")
    file = resolve_links(Path(path))
    with _folder_first_on_path(file.parent):
        found = _find(_import(Path(path), file), name, path)
        offered = {"input_shape": input_shape} | dict.fromkeys(_CLASS_COUNTS, num_classes)
        network = _make_network(spec, found, offered, given, file.parent)
        return initialise_lazy_layers(spec, network, input_shape=input_shape, folder=file.parent)


def _make_network(spec: str, found: Any, offered: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> nn.Module:
    """Return the network that a name of the file stands for, or call what it stands for with the arguments that it takes."""
    if isinstance(found, nn.Module):
        if given:
            raise ConfigError(f"{spec} is a network already and takes no --model-arg: leave {next(iter(given))} out, or name its class")
        return found
    if not callable(found):
        raise ConfigError(f"{spec} is a {type(found).__name__}: name a class or function that makes a network")
    parameters = parameters_of(found)
    arguments = {**{word: value for word, value in offered.items() if word in parameters}, **given}
    takes = [word for word, parameter in parameters.items() if parameter.kind in _NAMED_KINDS]
    _check(spec, parameters, arguments, takes)
    return construct(spec, found, arguments, takes=takes, folder=folder)


_NAMED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _check(spec: str, parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any], takes: list[str]) -> None:
    """Refuse arguments that the callable does not take, and calls that lack one."""
    for word in arguments:
        if word not in takes and not accepts_any_argument(parameters):
            raise no_such_argument(spec, word, takes)
    lacking = [word for word in required_parameters(parameters) if word not in arguments]
    if lacking:
        flags = " ".join(f"--model-arg {word}=VALUE" for word in lacking)
        raise ConfigError(f"{spec} needs {' and '.join(lacking)}: give {flags}")


def _import(path: Path, file: Path) -> ModuleType:
    """Import a file, under a name that no other module has, as a part of its package, so that its relative imports work."""
    if not file.is_file():
        raise ConfigError(f"{path}: no such file")
    name = _declare_packages(file.parent)
    spec = util.spec_from_file_location(name if file.stem == "__init__" else f"{name}.{file.stem}", file)
    assert spec is not None  # the file ends in .py
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise ConfigError(f"{path} cannot be imported: {describe_error(error, file.parent)}") from error
    finally:
        for package in accumulate(name.split("."), "{}.{}".format):
            _forget_init_on_demand(sys.modules.get(package))
    return module


def _declare_packages(folder: Path) -> str:
    """Make packages of a folder and of those around it that belong to it; return the folder's name."""
    top, *inner = _package_folders(folder)
    name = f"prunetrain_own_{crc32(str(top).encode()):08x}"
    for place in (top, *inner):
        name = name if place == top else f"{name}.{place.name}"
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(place)]
        sys.modules[name] = package = util.module_from_spec(spec)
        if (place / "__init__.py").is_file():
            vars(package)["__getattr__"] = _init_on_demand(package, place)
    return name


def _forget_init_on_demand(package: ModuleType | None) -> None:
    """Run no `__init__.py` from now on: whatever looks through `sys.modules`, as pickle may, would run it."""
    if package is not None and getattr(vars(package).get("__getattr__"), "__module__", None) == __name__:
        del vars(package)["__getattr__"]


def _init_on_demand(package: ModuleType, folder: Path) -> Callable[[str], Any]:
    """The package's `__getattr__` (PEP 562): runs its `__init__.py` when a name is asked for that none of its files has.

    It does not run before, since it may import what the network does not need.
    """

    def look_up(name: str) -> Any:
        if not (name.startswith("__") or (folder / f"{name}.py").is_file() or (folder / name).is_dir()):
            del vars(package)["__getattr__"]
            file = folder / "__init__.py"
            try:
                exec(compile(file.read_bytes(), str(file), "exec"), vars(package))
            except ImportError:  # as of the file that asks for the name, which is only half imported
                if name not in vars(package):
                    raise
            if name in vars(package):
                return vars(package)[name]
        raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")

    return look_up


def _package_folders(folder: Path) -> list[Path]:
    """The folder, and those around it up to the one in which Python would look for its package, outermost first."""
    found = [folder]
    while (found[0] / "__init__.py").is_file():
        found.insert(0, found[0].parent)
    return found


def _find(module: ModuleType, name: str, path: str) -> Any:
    """Return the object with a name in a module."""
    if name and hasattr(module, name):
        return getattr(module, name)
    own = [word for word, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__ and callable(value)]
    networks = [word for word in own if inspect.isclass(vars(module)[word]) and issubclass(vars(module)[word], nn.Module)]
    if not own:
        raise ConfigError(f"{path} defines no class or function: name a file with a network in it")
    if not name:
        raise ConfigError(f"{path}: name the network in it, such as {path}:{(networks or own)[-1]}")
    raise ConfigError(unknown_name(f"name in {path}", name, own))


@contextmanager
def _folder_first_on_path(folder: Path) -> Iterator[None]:
    """Make `import x` find the folder's x, or the package x that it is in, even if another x is loaded; restore that one afterwards."""
    top, *packages = _package_folders(folder)
    homes = {package.name: top for package in packages[:1]}
    homes |= dict.fromkeys((path.stem for path in folder.glob("*.py")), folder)
    homes |= dict.fromkeys((path.parent.name for path in folder.glob("*/__init__.py")), folder)
    parts = {name: (homes.get(name.partition(".")[0]), module) for name, module in sys.modules.items()}
    others = {name: module for name, (home, module) in parts.items() if home is not None and _is_outside(module, home)}
    for name in others:
        del sys.modules[name]
    added = list(dict.fromkeys((str(folder), str(top))))
    sys.path[:0] = added
    try:
        yield
    finally:
        for entry in added:
            with suppress(ValueError):  # the file may have changed sys.path itself
                sys.path.remove(entry)
        sys.modules.update(others)


def _is_outside(module: ModuleType, folder: Path) -> bool:
    """Whether a module's file is outside of a folder and neither one of Python's own nor torch, which every network needs."""
    file = getattr(module, "__file__", None)
    name = module.__name__.partition(".")[0]
    return file is not None and name not in (*sys.stdlib_module_names, "torch") and folder not in Path(file).resolve().parents
