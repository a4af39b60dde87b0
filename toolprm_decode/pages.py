"""The frame and the look that the HTML pages of the package share: one file each, nothing fetched, light or dark."""

from __future__ import annotations

from html import escape

# Wong's colours, which stay apart for the colour-blind: low and high are his vermilion and blue.
STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --soft: #59626d; --line: #d3d9df; --wash: #f3f5f7; --link: #0a5ea8;
  --good: #00775a; --bad: #b04300; --low: #d55e00; --high: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e3e6ea; --soft: #9ba5b1; --line: #363d46; --wash: #1e2329; --link: #6fb9f3;
    --good: #43c79d; --bad: #f2945c; --low: #e8772e; --high: #3a9ad9;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.5rem 3rem; font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.3rem 0 0.6rem; }
h2 { font-size: 1.15rem; line-height: 1.3; }
a { color: var(--link); }
code, pre { font: 0.9em/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
code { white-space: pre-wrap; }
pre { white-space: pre-wrap; background: var(--wash); border: 1px solid var(--line); border-radius: 4px;
  padding: 0.4rem 0.6rem; margin: 0.5rem 0; }
summary { cursor: pointer; }
.soft { color: var(--soft); }
.good { color: var(--good); }
.bad { color: var(--bad); }
@media (max-width: 700px) { body { padding: 0.7rem 0.8rem 2rem; } }
"""


def html_page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole page. The title is escaped; body, style and script are put in as they are."""
    scripts = f"<script>{script}</script>\n" if script else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}{scripts}</body>
</html>
"""


# A page with a mistake in its escaping would still load nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
