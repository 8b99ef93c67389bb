"""The command line: one file per command, imported when that command runs.

In: arguments. Out: an exit code. 0: success. 2: the user's mistake, with one line on stderr. 1: some of many things failed, with one line
for each. 128 plus the number of a signal that asked to stop: 130 after Ctrl-C, 143 after SIGTERM. `prunetrain --help` imports click and
nothing heavier.
"""

import difflib
import importlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from prunetrain.errors import PruneTrainError, is_out_of_memory, system_reason, unknown_name
from prunetrain.foreign.refusal import printable
from prunetrain.synonyms import synonym_of
from prunetrain.training.stopping import StopRequested, exit_code, stopping_on_signals

_LONGEST_LINE = 2000  # characters of an error message

ARGUMENTS = "prunetrain.arguments"  # in `Context.meta`: the whole command line, without the program
COMMANDS = {
    "train": "Train a network and make it smaller while it trains.",
    "reconfigure": "Cut the dead channels of a checkpoint once, offline.",
    "inspect": "Show a network's layers, what changed, or a run's history.",
    "report": "Write an HTML page with plots of one or more runs.",
    "prune": "Prune a checkpoint with another method, and retrain it.",
    "study": "Compare pruning methods at many rates on one network.",
    "sweep": "Train once for every config file in a folder.",
    "flatten": "Write any network as one flat Python file.",
    "evaluate": "Measure a checkpoint's loss and accuracy.",
    "predict": "Classify images with a trained network.",
    "bench": "Time a network on this machine, or compare two.",
    "export": "Write a trained network as ONNX, pt2, safetensors or csr.",
}


class LazyGroup(click.Group):
    """A group that knows the names and one-line summaries of its commands, and imports `<package>.<name>.command` to run one."""

    def __init__(self, *args: Any, summaries: dict[str, str], package: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.summaries = summaries
        self.package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.summaries:
            return None
        command = importlib.import_module(f"{self.package}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.summaries and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(unknown_name("command", args[0], self.summaries), ctx)
        return super().resolve_command(ctx, args)

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any) -> click.Context:
        args = [_expand_home(arg) for arg in args]
        given = tuple(args)  # click empties the list
        with _one_line_errors():
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[ARGUMENTS] = given
        return context

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line_errors(), stopping_on_signals():
            return super().invoke(ctx)


def _expand_home(arg: str) -> str:
    """Expand `~` at the start of a path, which shells leave as it is in `--output-dir=~/runs`; it would become a folder of that name."""
    flag, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    return f"{flag}{equals}{os.path.expanduser(value)}"


class OneLineError(click.ClickException):
    """An error as the user sees it: `error: ` and one line on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        line = printable(self.message)
        click.echo(f"error: {line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + '...'}", file=file, err=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn users' mistakes into a `OneLineError`, and requests to stop into exit codes."""
    try:
        yield
    except (OneLineError, BrokenPipeError):  # click exits quietly when the reader of the output has gone
        raise
    except PruneTrainError as error:
        raise OneLineError(str(error)) from error
    except click.ClickException as error:
        raise OneLineError(_usage_line(error)) from error
    except OSError as error:
        raise OneLineError(_system_line(error)) from error
    except StopRequested as error:
        raise click.exceptions.Exit(exit_code(error.number)) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise OneLineError(f"out of memory: use a smaller --batch-size or a smaller network{reason}") from error
    except KeyboardInterrupt as error:
        click.echo(err=True)
        raise click.exceptions.Exit(130) from error


def _usage_line(error: click.ClickException) -> str:
    """Say in one line what click found wrong, with the nearest option and the --help to read."""
    text = error.format_message()
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.NoSuchOption):
        text = f"unknown option {error.option_name!r}"
        params = ctx.command.get_params(ctx) if ctx else []
        known = {flag.lstrip("-") for param in params for flag in (*param.opts, *param.secondary_opts) if flag.startswith("--")}
        given = error.option_name.lstrip("-").replace("_", "-")
        synonym = synonym_of(given)
        near = [synonym] if synonym in known else sorted(flag for flag in known if flag.startswith(given))
        near = near or difflib.get_close_matches(given, sorted(known))
        if near:
            text += f": did you mean {' or '.join(f'--{flag}' for flag in near)}?"
    text = text[:1].lower() + text[1:]
    if ctx is None:
        return text
    return f"{text if text.endswith('?') else text.rstrip('.') + '.'} Try {ctx.command_path} --help"


def _system_line(error: OSError) -> str:
    """Say in one line what the system refused, and for which file."""
    return (f"{error.filename}: " if error.filename is not None else "") + system_reason(error)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        versions = [f"{name} {_version(name)}" for name in ("prunetrain", "torch", "torchvision")]
        click.echo(", ".join([*versions, f"Python {platform.python_version()}"]))
        ctx.exit()


def _version(distribution: str) -> str:
    from importlib import metadata  # slow to import

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed)"


@click.group(
    cls=LazyGroup,
    summaries=COMMANDS,
    package=__name__,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the versions and exit.")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Train image-classification CNNs and make them smaller while they train."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
