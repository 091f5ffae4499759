"""The gallery of an evaluation: prompts, pictures and verdicts in one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from snapgen.pictures import data_url, encode_picture, read_rgb

THUMBNAIL = 192  # px, the longer side
LIMIT = 2400  # pictures on a page, about 5 kB each

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222 }
.plot { max-width: 100% }
pre { background: #f4f4f4; padding: .6rem; white-space: pre-wrap }
.cards { display: flex; flex-wrap: wrap; gap: 12px }
.card { border: 1px solid #ddd; border-radius: 6px; padding: 8px; max-width: 100% }
.card p { margin: 0 0 6px; max-width: 26rem; font-weight: 600 }
.row { display: flex; flex-wrap: wrap; gap: 8px }
figure { margin: 0; width: 192px }
figure img { display: block; max-width: 100% }
.right img { border-top: 4px solid #2a2 } .wrong img { border-top: 4px solid #d33 }
figcaption { font-size: 12px; overflow-wrap: anywhere }
#only-right:checked ~ main .wrong, #only-wrong:checked ~ main .right { display: none }
#only-right:checked ~ main .card:not(:has(.right)), #only-wrong:checked ~ main .card:not(:has(.wrong)) { display: none }
"""


def gallery_page(title: str, table: str, plot: bytes, pictures: Sequence[dict[str, Any]], folder: Path) -> str:
    """The page as HTML: `table` (Markdown, shown as is), `plot` (a PNG) and the first `LIMIT` of `pictures`.

    Each picture is a dictionary with `file` (relative to `folder`, or absolute), `prompt` and, optionally,
    `category`, `split`, `seed`, `verdict` (with `correct` and `reason`), `opinion` (a second verdict) and `score`.
    Pictures of one prompt share a card.
    """
    shown = pictures[:LIMIT]
    judged = any("verdict" in picture for picture in shown)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>",
        f'<h1>{escape(title)}</h1><img class=plot alt="plot" src="{data_url(plot, "png")}">',
        f"<pre>{escape(table)}</pre>",
    ]
    if len(shown) < len(pictures):
        parts.append(f"<p>The first {len(shown)} of {len(pictures)} pictures.</p>")
    if judged:
        for name, label in (("all", "all"), ("only-right", "right"), ("only-wrong", "wrong")):
            checked = " checked" if name == "all" else ""
            parts.append(f"<input type=radio name=show id={name}{checked}><label for={name}>{label}</label> ")
    parts.append("<main>")
    for section, members in groupby(shown, key=_section):
        parts.append(f"<h2>{escape(section)}</h2><div class=cards>" if section else "<div class=cards>")
        for prompt, group in groupby(members, key=lambda picture: str(picture["prompt"])):
            figures = "".join(_figure(picture, folder) for picture in group)
            parts.append(f"<div class=card><p>{escape(prompt)}</p><div class=row>{figures}</div></div>")
        parts.append("</div>")
    return "\n".join([*parts, "</main></html>"])


def _section(picture: dict[str, Any]) -> str:
    return ", ".join(str(picture[key]) for key in ("category", "split") if picture.get(key))


def _figure(picture: dict[str, Any], folder: Path) -> str:
    """One picture as HTML, captioned with its verdict, score and seed where it has them."""
    verdict, notes, style = picture.get("verdict"), [], ""
    if verdict is not None:
        style = "right" if verdict["correct"] else "wrong"
        notes.append(_verdict(verdict))
    if "opinion" in picture:
        notes.append(f"classifier: {_verdict(picture['opinion'])}")
    if "score" in picture:
        notes.append(f"{picture['score']:.4g}")
    if picture.get("seed") is not None:
        notes.append(f"seed {picture['seed']}")
    thumbnail = read_rgb(folder / picture["file"])
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    caption = escape(", ".join(notes))
    alt = escape(str(picture["prompt"]), quote=True)
    url = data_url(encode_picture(thumbnail, "webp", quality=80), "webp")
    return f'<figure class="{style}"><img alt="{alt}" src="{url}"><figcaption>{caption}</figcaption></figure>'


def _verdict(verdict: dict[str, Any]) -> str:
    return "right" if verdict["correct"] else f"wrong: {verdict['reason']}"
