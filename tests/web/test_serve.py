"""What is served, with which headers; and the site for other hosts."""

import http.client
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from snapgen.files import sha256
from snapgen.web.serve import SiteServer, site_files, write_site

Serve = Callable[[dict[str, Path]], SiteServer]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A folder like that of the built app, without a model."""
    folder = tmp_path / "app"
    (folder / "assets").mkdir(parents=True)
    for name in ("index.html", "sw.js", "assets/main-1234.js", "assets/ort.wasm", "assets/ort.mjs", "app.webmanifest"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A bundle whose networks are no networks: nothing here runs them."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("text_encoder.onnx", "unet.onnx", "decoder.onnx", "tokenizer.json"):
        (folder / name).write_text(name)
    place = {"tokens": [0, 4], "columns": [0, 8], "pooled": True}
    text = {"network": "text_encoder", "tokenizer": "tokenizer.json"} | place
    description = {
        "target": "onnx",
        "precision": "fp32",
        "model": "none",
        "snapgen": "0.1.0",
        "license": None,
        "networks": {
            name: {"file": f"{name}.onnx", "inputs": [], "outputs": []} for name in ("text_encoder", "unet", "decoder")
        },
        "texts": [text],
        "latents": {"channels": 4, "height": 4, "width": 4, "multiple": 1, "fixed": False, "pixels": 8},
        "sampling": {"steps": 4, "guidance": 1.0, "shift": 3.0},
        "known_words": None,
        "golden": {"seed": 0, "noise": []},
        "parity": {"inputs": 20, "relative_error": {}, "psnr": []},
        "files": {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())
        },
    }
    (folder / "bundle.json").write_text(json.dumps({"format": "snapgen-bundle", "version": 1} | description))
    return folder


def answer(server: SiteServer, path: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", path, headers=headers or {})
    return connection.getresponse()


def test_files_have_their_types_and_are_kept_as_long_as_they_may(page: Path, model: Path, serve: Serve) -> None:
    server = serve(site_files(model, page))
    expected = {
        "/": ("text/html; charset=utf-8", "no-cache"),
        "/index.html?a=b": ("text/html; charset=utf-8", "no-cache"),
        "/sw.js": ("text/javascript; charset=utf-8", "no-cache"),
        "/app.webmanifest": ("application/manifest+json", "no-cache"),
        "/assets/main-1234.js": ("text/javascript; charset=utf-8", "max-age=31536000, immutable"),
        "/assets/ort.mjs": ("text/javascript; charset=utf-8", "max-age=31536000, immutable"),
        "/assets/ort.wasm": ("application/wasm", "max-age=31536000, immutable"),
        "/model/unet.onnx?v=0123": ("application/octet-stream", "no-cache"),
        "/model/bundle.json": ("application/json", "no-cache"),
    }
    for path, (kind, keep) in expected.items():
        response = answer(server, path)
        headers = response.headers
        assert (response.status, headers["Content-Type"], headers["Cache-Control"]) == (200, kind, keep)
        assert "connect-src" not in headers["Content-Security-Policy"]  # what is not listed follows the default:
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
    response = answer(server, "/model/unet.onnx")
    assert response.read() == b"unet.onnx"
    again = answer(server, "/model/unet.onnx", {"If-Modified-Since": response.headers["Last-Modified"]})
    assert again.status == 304


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/assets/gone.js",
        "/assets",
        "/assets/",
        "/model/",
        "/../secret",
        "/%2e%2e/secret",
        "//etc/passwd",
        "/model/more",
    ],
)
def test_nothing_else_is_served(path: str, page: Path, model: Path, tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "secret").write_text("secret")
    (model / "more").write_text("not of the bundle")
    response = answer(serve(site_files(model, page)), path)
    assert (response.status, response.headers["Cache-Control"]) == (404, "no-cache")
    assert b"secret" not in response.read()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"\x16\x03\x01 a b c", b"400"),  # as of HTTPS
        (b"NOTHING", b"400"),
        (b"GET http://[ HTTP/1.1", b"404"),
    ],
)
def test_requests_that_cannot_be_read_are_answered_in_silence(
    request_line: bytes, status: bytes, page: Path, model: Path, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve(site_files(model, page))
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(request_line + b"\r\n\r\n")
        assert status in connection.recv(1000)
    assert capfd.readouterr().err == ""


def test_the_model_of_the_app_is_served_unless_another_is_named(page: Path, model: Path) -> None:
    with pytest.raises(ValueError, match="^the web app was built without a model: run 'make web', or name a bundle"):
        site_files(app=page)
    shutil.copytree(model, page / "model")
    own, other = site_files(app=page), site_files(model, page)
    assert own.keys() == other.keys()
    assert own["model/unet.onnx"] == page / "model" / "unet.onnx"
    assert other["model/unet.onnx"] == model / "unet.onnx"
    with pytest.raises(ValueError, match="^the web app is not built: run 'make web' in a checkout"):
        site_files(model, page / "assets")


def test_a_bundle_that_cannot_be_used_is_refused(page: Path, model: Path) -> None:
    content = json.loads((model / "bundle.json").read_text())
    content["texts"][0]["tokenizer"] = None
    (model / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has no text encoder, so that it cannot draw from words$"):
        site_files(model, page)
    (model / "unet.onnx").write_text("altered")
    with pytest.raises(ValueError, match="unet.onnx is not the file that the bundle was made with"):
        site_files(model, page)


def test_a_site_for_other_hosts_is_written_whole(page: Path, model: Path, tmp_path: Path) -> None:
    files = site_files(model, page)
    out = tmp_path / "sites" / "drawing"
    write_site(files, out)
    written = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert written.keys() == files.keys()
    assert all(written[name].read_bytes() == path.read_bytes() for name, path in files.items())
    (model / "unet.onnx").unlink()
    with pytest.raises(FileNotFoundError):
        write_site(files, tmp_path / "sites" / "broken")
    assert [path.name for path in out.parent.iterdir()] == ["drawing"]
