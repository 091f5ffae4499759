"""`snapgen web`: what it prints, how it ends, and what it says when it cannot work."""

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from snapgen.cli.main import run
from snapgen.web import serve


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An app with nothing but a page."""
    page = tmp_path / "index.html"
    page.write_text("<p>a page</p>")
    monkeypatch.setattr(serve, "site_files", lambda model: {"index.html": page})
    return page


def test_it_serves_until_it_is_stopped(site: Path) -> None:
    """In a process of its own, which Ctrl-C ends without a complaint."""
    code = (
        "import sys; from pathlib import Path; from snapgen.web import serve; from snapgen.cli.main import main;"
        f"serve.site_files = lambda model: {{'index.html': Path({str(site)!r})}};"
        "sys.argv = ['snapgen', 'web', '--port', '0', '--no-open']; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:")
    assert urllib.request.urlopen(address, timeout=10).read() == b"<p>a page</p>"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (out, err, process.returncode) == ("", "Ctrl-C stops it\n", 0)


def test_a_static_site_is_written(site: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["web", "--out", str(out)]) == 0
    assert capfd.readouterr().out == f"{out}\n"
    assert (out / "index.html").read_text() == "<p>a page</p>"
    assert run(["web", "--out", str(out)]) == 1
    assert capfd.readouterr().err == f"snapgen: error: --out {out} is not empty: name a new folder\n"


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--port", "70000"], "--port 70000 is out of range: from 0 to 65535"),
        (["--model", "missing"], "'missing' is not a bundle: it has no bundle.json"),
        (["--out", "-"], "--out -: nothing but names and numbers goes to standard output"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    fragment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "index.html").touch()
    files = serve.site_files
    monkeypatch.setattr(serve, "site_files", lambda model: files(model, tmp_path / "app"))
    assert run(["web", "--no-open", *arguments]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert fragment in err


def test_a_port_that_is_taken_is_named(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["web", "--no-open", "--port", str(port)]) == 1
    expected = f"cannot serve on --host 127.0.0.1 --port {port}: address already in use"
    assert capfd.readouterr().err == f"snapgen: error: {expected}\n"


def test_an_app_that_is_not_built_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = serve.site_files
    monkeypatch.setattr(serve, "site_files", lambda model: files(model, tmp_path))
    assert run(["web"]) == 1
    said = "the web app is not built: run 'make web' in a checkout of snapgen (it needs npm)"
    assert capfd.readouterr().err == f"snapgen: error: {said}\n"
