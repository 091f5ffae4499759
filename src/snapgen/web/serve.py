"""Serves the web app with a model, or writes both as a static site.

The app is built from `web/` into `app/` beside this file (`make web`), with an exported model in `app/model/`. Nothing
but files is served: the browser computes.
"""

from __future__ import annotations

import mimetypes
import shutil
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from snapgen.files import atomic_folder
from snapgen.runtime.bundle import BUNDLE, read_bundle

APP = Path(__file__).with_name("app")
INDEX, MODEL = "index.html", "model"
TARGET = "onnx"  # what the app runs
TYPES = {  # that machines disagree on
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
}
NAMED_BY_CONTENT = "assets/"  # files there never change under their names
# The page names this policy itself; a worker has that of its own response.
POLICY = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob:"


def site_files(model: Path | None = None, app: Path = APP) -> dict[str, Path]:
    """The files of the site by their path below its address: the app, and the bundle `model` (by default its own).

    ValueError if the app is not built, or if the bundle is damaged or cannot draw from words.
    """
    if not (app / INDEX).is_file():
        raise ValueError("the web app is not built: run 'make web' in a checkout of snapgen (it needs npm)")
    if model is None and not (app / MODEL / BUNDLE).is_file():
        raise ValueError("the web app was built without a model: run 'make web', or name a bundle with --model")
    folder = app / MODEL if model is None else model
    bundle = read_bundle(folder, TARGET)
    if all(text.tokenizer is None for text in bundle.texts):
        raise ValueError(f"'{folder}' has no text encoder, so that it cannot draw from words")
    parts = {path.relative_to(app).as_posix(): path for path in sorted(app.rglob("*")) if path.is_file()}
    own = {name: path for name, path in parts.items() if not name.startswith(f"{MODEL}/")}
    return own | {f"{MODEL}/{name}": folder / name for name in (BUNDLE, *bundle.files)}


def write_site(files: dict[str, Path], out: Path) -> None:
    """Writes the site to the folder `out`, whole or not at all. It works below any address."""
    with atomic_folder(out) as temporary:
        for name, path in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)


class SiteServer(ThreadingHTTPServer):
    """Serves the files of a site and nothing else."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], files: dict[str, Path]) -> None:
        self.host, self.files = address[0], files
        super().__init__(address, SiteHandler)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the site."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers that leave in the middle of a file are no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class SiteHandler(SimpleHTTPRequestHandler):
    """Answers with a file of the site."""

    protocol_version = "HTTP/1.1"
    path = ""  # of requests that cannot be read, such as HTTPS
    server: SiteServer

    @property
    def name(self) -> str:
        """The path that is asked for, below the site's address; "" for one that cannot be read."""
        try:
            path = urlsplit(self.path).path
        except ValueError:  # of hosts in brackets
            return ""
        return unquote(path).removeprefix("/") or INDEX

    def translate_path(self, path: str) -> str:
        """The file that is asked for; none for whatever does not belong to the site."""
        return str(self.server.files.get(self.name, ""))

    def guess_type(self, path: Any) -> str:
        """The media type of a file."""
        known = TYPES.get(Path(path).suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"
        return f"{known}; charset=utf-8" if known.startswith("text/") else known

    def end_headers(self) -> None:
        """Adds how long a file may be kept, and what the page may do."""
        found = self.name in self.server.files and self.name.startswith(NAMED_BY_CONTENT)
        self.send_header("Cache-Control", "max-age=31536000, immutable" if found else "no-cache")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are nobody's business."""
