"""The entry point of the command line: finds the verb, and reports every failure in one line on standard error.

A verb is one line in `VERBS`. Its module is imported only when the verb is used or `--help` lists it. The module
imports nothing heavy at its top, so help appears at once although the program uses torch.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import requires
from types import FrameType
from typing import Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup
from typer.main import get_group

from snapgen.messages import one_line
from snapgen.registry import load_attribute

VERBS = {  # name on the command line: "module:attribute", a function or a typer app
    "generate": "snapgen.cli.generate:generate",
    "train": "snapgen.cli.train:train",
    "reproduce": "snapgen.cli.reproduce:reproduce",
    "export": "snapgen.cli.export:export",
    "profile": "snapgen.cli.profile:profile",
    "plan": "snapgen.cli.plan:plan",
    "evaluate": "snapgen.cli.evaluate:evaluate",
    "study": "snapgen.cli.study:app",
    "web": "snapgen.cli.web:web",
    "data": "snapgen.cli.data:app",
}

INTERRUPTED = 128 + signal.SIGINT  # what a shell reports for a program stopped by Ctrl-C
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TERMINATED = 128 + signal.SIGTERM


class VerbGroup(TyperGroup):
    """A command group that imports a verb's module only when the verb is used."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The names of all verbs."""
        return list(VERBS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """The verb's command, or None if there is no such verb."""
        if cmd_name not in VERBS:
            return None
        target = load_attribute(VERBS[cmd_name])
        holder = _plain_app()
        if isinstance(target, typer.Typer):
            holder.add_typer(target, name=cmd_name)
        else:
            holder.command(cmd_name)(target)
        command = get_group(holder).commands[cmd_name]
        if isinstance(command, TyperGroup):
            command.no_args_is_help = False  # a missing sub-command is a one-line error, like any other
        return command


def _plain_app(**settings: Any) -> typer.Typer:
    """A typer app that prints plain text and leaves exceptions to `run`."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **settings)


app = _plain_app(cls=VerbGroup)


def _print_version(wanted: bool) -> None:
    """Print the installed version and stop."""
    if wanted:
        from snapgen import __version__

        typer.echo(f"snapgen {__version__}")
        raise typer.Exit


@app.callback()
def snapgen(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show tracebacks and the libraries' warnings; may follow the verb.")
    ] = False,
) -> None:
    """Small text-to-image models for mobile devices: generate pictures, train models, measure them."""


def main() -> NoReturn:
    """Run this process's command line and exit."""
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader is gone. Python would flush again at exit and complain: give it a sink.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or 1
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; a failure prints one line on standard error."""
    options, separator, rest = _split_at_separator(arguments)
    verbose = "--verbose" in options
    options = [option for option in options if option != "--verbose"]
    terminated: list[int] = []
    try:
        with _termination(terminated), nullcontext() if verbose else _quiet_libraries():
            status = typer.main.get_command(app).main([*options, *separator, *rest], "snapgen", standalone_mode=False)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except typer.Abort:
        status = INTERRUPTED
    except BrokenPipeError:
        return 1  # the reader is gone: there is nobody to report to
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context else ""
        _report(f"{one_line(error.format_message()).rstrip('.')}{hint}")
        return error.exit_code
    except Exception as error:  # last resort: users see a traceback only if they ask for it
        if verbose:
            traceback.print_exc()
        _report(_describe(error, verbose))
        return 1
    if status == INTERRUPTED and terminated:
        status = TERMINATED
        _report(f"stopped by SIGTERM, exit status {TERMINATED}")
    elif status == INTERRUPTED:
        _report("interrupted")
    return status if isinstance(status, int) else 0


def _split_at_separator(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The arguments before the first `--`, the `--` itself if there is one, and the arguments after it."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:end]), list(arguments[end : end + 1]), list(arguments[end + 1 :])


def _describe(error: Exception, verbose: bool) -> str:
    """`error` in one line: a user's mistake in plain words, anything else with a hint how to learn more."""
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_that_brings(error.name or "")):
        return f"{error.name} is not installed; run: pip install 'snapgen[{extra}]'"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower()}"
    # Files would be named (`snapgen.files.naming`).
    if isinstance(error, OSError) and error.strerror and error.errno in FULL:
        return f"standard output or a temporary file: {error.strerror.lower()}"
    message = one_line(str(error)) or type(error).__name__
    if isinstance(error, ValueError | OSError | ImportError):
        return message
    hint = "" if verbose else " (run with --verbose for the traceback)"
    return f"{type(error).__name__}: {message}{hint}"


def _extra_that_brings(module: str) -> str | None:
    """The optional extra of this package that installs `module`, if one does."""
    wanted = module.partition(".")[0].replace("_", "-").lower()
    for requirement in requires("snapgen") or []:
        name, _, marker = requirement.partition(";")
        if "extra ==" in marker and name.split("[")[0].rstrip(" <>=!~.,0123456789").lower() == wanted:
            return marker.split("extra ==")[1].strip(" \"')")
    return None


@contextmanager
def _termination(seen: list[int]) -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does, so that unfinished files are removed; it is then in `seen`."""

    def stop(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # somebody else handles it, or it is ignored
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Show each of this package's warnings in one line, and hide the libraries'."""
    for variable in ("DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    os.environ.setdefault("TORCH_LOGS", "-all")  # errors only
    last_resort = logging.lastResort or logging.NullHandler()  # for libraries whose records nobody handles
    level = last_resort.level
    last_resort.setLevel(logging.ERROR)
    logger, handler = logging.getLogger("snapgen"), _WarningLines()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_own_warning
            yield
    finally:
        logger.removeHandler(handler)
        last_resort.setLevel(level)


class _WarningLines(logging.Handler):
    """Prints log records as `snapgen: warning: ...`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print `record` on standard error."""
        _print_line(record.levelname.lower(), record.getMessage())


def _show_own_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Replacement for `warnings.showwarning`: prints this package's warnings in one line, and no others."""
    if filename.startswith(os.path.dirname(os.path.dirname(__file__)) + os.sep):
        _print_line("warning", str(message))


def _report(message: str) -> None:
    """Print a failure's one-line explanation."""
    _print_line("error", message)


def _print_line(kind: str, message: str) -> None:
    print(f"snapgen: {kind}: {one_line(message)}", file=sys.stderr)
