"""The console entry point: what it prints where, its exit statuses, and what it must not import."""

import os
import signal
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from snapgen.cli import main as cli

SNAPGEN = [sys.executable, "-c", "from snapgen.cli.main import main; main()"]


def snapgen(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SNAPGEN, *arguments], capture_output=True, text=True, timeout=120, **settings)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Mounts a function as the verb `try`."""

    def mount(function: Callable[[], None]) -> None:
        module = types.ModuleType("verb_to_try")
        module.function = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "verb_to_try", module)
        monkeypatch.setitem(cli.VERBS, "try", "verb_to_try:function")

    return mount


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


def test_help_names_every_verb_and_goes_to_standard_output() -> None:
    done = snapgen("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for name in cli.VERBS:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("statement", ["import snapgen", "from snapgen.cli.main import run; run(['--help'])"])
def test_nothing_heavy_is_imported(statement: str) -> None:
    heavy = ("torch", "diffusers", "transformers", "numpy")
    code = f"import sys; {statement}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_version() -> None:
    done = snapgen("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("snapgen 0.")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "Missing command"),
        (["nonsense"], "No such command 'nonsense'"),
        (["generate"], "Missing option '-o' / '--out'"),
        (["generate", "a cat", "--out"], "requires an argument"),
        (["generate", "a cat", "--out", "a.png", "--steps", "many"], "--steps"),
        (["generate", "a cat", "--out", "a.png", "--bogus"], "--bogus"),
        (["data"], "Missing command"),
    ],
)
def test_usage_error_is_one_line_and_status_2(
    arguments: list[str], fragment: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("snapgen: error: ")
    assert err.count("\n") == 1
    assert fragment in err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("steps must\nbe positive"), "snapgen: error: steps must be positive\n"),
        (
            FileNotFoundError(2, "No such file or directory", "recipe.yaml"),
            "snapgen: error: recipe.yaml: no such file or directory\n",
        ),
        (
            ModuleNotFoundError("No module named 'accelerate'", name="accelerate"),
            "snapgen: error: accelerate is not installed; run: pip install 'snapgen[train]'\n",
        ),
        (
            ModuleNotFoundError("No module named 'scipy.linalg'", name="scipy.linalg"),
            "snapgen: error: scipy.linalg is not installed; run: pip install 'snapgen[eval]'\n",
        ),
        (
            OSError(28, "No space left on device"),
            "snapgen: error: standard output or a temporary file: no space left on device\n",
        ),
        (
            OSError(28, "No space left on device", "a/page.html"),
            "snapgen: error: a/page.html: no space left on device\n",
        ),
        (ImportError("cannot import name 'x'"), "snapgen: error: cannot import name 'x'\n"),
        (
            ZeroDivisionError(),
            "snapgen: error: ZeroDivisionError: ZeroDivisionError (run with --verbose for the traceback)\n",
        ),
    ],
)
def test_failure_is_one_line_and_status_1(
    error: Exception, line: str, verb: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    verb(raising(error))
    assert cli.run(["try"]) == 1
    assert capfd.readouterr() == ("", line)


@pytest.mark.parametrize("arguments", [["--verbose", "try"], ["try", "--verbose"]])
def test_verbose_adds_the_traceback(
    arguments: list[str], verb: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    verb(raising(ValueError("odd")))
    assert cli.run(arguments) == 1
    err = capfd.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("\nsnapgen: error: odd\n")


def test_words_after_a_double_dash_are_no_options(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["generate", "--out", "no/such/folder/a.png", "--", "--verbose"]) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_own_warnings_are_one_line_and_the_libraries_are_silent(
    verb: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    def warn() -> None:
        warnings.warn_explicit("the prompt\nis too long", UserWarning, cli.__file__, 1)
        warnings.warn_explicit("a library is unhappy", UserWarning, "/somewhere/library.py", 1)

    verb(warn)
    assert cli.run(["try"]) == 0
    assert capfd.readouterr() == ("", "snapgen: warning: the prompt is too long\n")


def test_interrupt_is_status_130(verb: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    verb(raising(KeyboardInterrupt()))
    assert cli.run(["try"]) == 130
    assert capfd.readouterr().err == "snapgen: error: interrupted\n"


def test_interrupt_of_a_real_process() -> None:
    code = (
        # A shell in the background hands down an ignored interrupt.
        "import signal, sys, time, types; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from snapgen.cli import main as cli; m = types.ModuleType('m');"
        "m.wait = lambda: (print('ready', flush=True), time.sleep(60)); sys.modules['m'] = m;"
        "cli.VERBS['wait'] = 'm:wait'; sys.argv = ['snapgen', 'wait']; cli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "snapgen: error: interrupted\n"
    assert process.returncode == 130


def test_a_reader_that_has_gone_is_no_news() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([*SNAPGEN, "--help"], stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write_end)
    assert done.stderr == ""
    assert done.returncode == 1
