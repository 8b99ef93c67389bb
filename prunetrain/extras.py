"""Packages that only some commands need. In: a module's name. Out: the module, or an error that says how to install it."""

from importlib import import_module
from types import ModuleType
from typing import Final

from prunetrain.errors import ConfigError

EXTRAS: Final = {
    "matplotlib": "plot",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "tensorboard": "tensorboard",
    "timm": "timm",
}
"""The extra of prunetrain that installs each optional package."""


def require(module: str, wanted_by: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its full name; its package is one of `EXTRAS`.
        wanted_by: what needs it, for the message.

    Raises:
        ConfigError: if the package is not installed.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        install = f"pip install 'prunetrain[{EXTRAS[package]}]', or pip install {package}"
        raise ConfigError(f"{wanted_by} needs {package}, which is not installed: {install}") from error
