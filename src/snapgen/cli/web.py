"""`snapgen web`: a page that draws on the visitor's own device, served from here or written for a web host."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from snapgen.cli.options import check_range
from snapgen.cli.outputs import check_folder
from snapgen.cli.progress import show_message

PORT = 8642  # rarely used by others: browsers keep the page for this address


def web(
    port: Annotated[int, typer.Option(help="Port to serve on; 0 for any free one.")] = PORT,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    model: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="What `snapgen export --target onnx` wrote; 'mini' if not given."),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the page in a browser.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a static site for any web host instead of serving.")
    ] = None,
) -> None:
    """Serve the web app, which draws in the browser; prints its address. With --out, write it as a static site."""
    from snapgen.web.serve import SiteServer, site_files, write_site

    check_range("--port", port, 0, 65535)
    if out is not None:
        check_folder("--out", out)
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"--out {out} is not empty: name a new folder")
    files = site_files(model)
    if out is not None:
        write_site(files, out)
        typer.echo(out)
        return
    try:
        server = SiteServer((host, port), files)
    except OSError as error:
        raise ValueError(
            f"cannot serve on --host {host} --port {port}: {(error.strerror or str(error)).lower()}"
        ) from error
    with server:
        typer.echo(server.url)
        show_message("Ctrl-C stops it")
        if not no_open:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # how it is meant to end
            return
