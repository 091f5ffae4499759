"""The web app, built once, and a server for it that the test can change."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapgen.web.serve import SiteServer

ROOT = Path(__file__).parents[2]
Serve = Callable[[dict[str, Path]], SiteServer]


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built app, without a model; the tests fail if its packages are not installed."""
    if shutil.which("npm") is None or not (ROOT / "web" / "node_modules").is_dir():
        pytest.fail("the web app's packages are missing: make web/node_modules/installed", pytrace=False)
    folder = tmp_path_factory.mktemp("web") / "app"
    command = ["npm", "run", "build", "--prefix", str(ROOT / "web"), "--silent", "--", "--logLevel", "warn"]
    subprocess.run(command, check=True, timeout=120, env=os.environ | {"SNAPGEN_APP": str(folder)})
    return folder


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves files on a free port until the test ends."""
    servers = []

    def start(files: dict[str, Path]) -> SiteServer:
        server = SiteServer(("127.0.0.1", 0), files)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
