"""The parts that a page is made of, as HTML."""

import base64
import html
from collections.abc import Iterable
from typing import Any


def section(title: str, *parts: str) -> str:
    """Returns nothing where there is nothing to show."""
    body = "".join(parts)
    return f"<h2>{html.escape(title)}</h2>{body}" if body else ""


def grid(cells: Iterable[str]) -> str:
    """Sets cells side by side where there is room; nothing if all are empty."""
    body = "".join(cells)
    return f'<div class="grid">{body}</div>' if body else ""


def paragraphs(lines: Iterable[str]) -> str:
    """Makes a paragraph of each line."""
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def table(rows: list[list[str]], total: bool = False) -> str:
    """Makes a table, the header first; `total` sets the last row apart."""
    if len(rows) < 2:
        return ""
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in rows[0])
    body = ""
    for row in rows[1:]:
        last = total and row is rows[-1]
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        body += (
            f"<tr{' class=total' * last}>"
            f'<th scope="row">{html.escape(row[0])}</th>{cells}</tr>'
        )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def pairs(settings: dict[str, Any]) -> str:
    """Makes a table of names and values."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(str(name))}</th>'
        f"<td>{html.escape(str(value))}</td></tr>"
        for name, value in settings.items()
    )
    return f'<table class="pairs">{rows}</table>' if rows else ""


def figure(png: bytes, alt: str, caption: str = "", kind: str = "") -> str:
    """Returns a picture; `caption` is HTML already."""
    data = base64.b64encode(png).decode()
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        f'<figure class="{kind}"><img src="data:image/png;base64,{data}" '
        f'alt="{html.escape(alt)}">{below}</figure>'
    )


STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem;
       margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff;
       overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd;
         text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 400; }
.wide th:first-child { position: sticky; left: 0; background: #fff; }
tr.total > * { border-top: 2px solid #888; font-weight: 600; }
.pairs th, .pairs td { text-align: left; white-space: normal;
                       vertical-align: top; overflow-wrap: anywhere; }
.pairs th { min-width: 6rem; color: #555; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; }
figcaption { color: #444; font-size: .9em; }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.grid figure { margin: 0; }
.grid figcaption { text-align: center; }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem; }
.gallery figure { margin: 0; width: 7rem; }
.gallery img { width: 6rem; height: 6rem; object-fit: contain;
               image-rendering: pixelated; background: #f4f4f4;
               border: 3px solid #bbb; }
.gallery .wrong img { border: 3px dashed #b00020; }
.gallery .wrong strong, .notice { color: #b00020; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>packnet_tf: {title}</title>
<style>{style}</style>
</head>
<body>
<h1>One network, several tasks</h1>
<p>Tasks: {title}.</p>
{body}
</body>
</html>
"""
