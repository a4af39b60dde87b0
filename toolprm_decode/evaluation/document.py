"""A document of headings, tables and plots that is written twice: as one HTML file, and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from toolprm_decode.evaluation.plots import GRID, INK, PAPER
from toolprm_decode.pages import html_page

_BAR = "\\|"  # ends no cell, even inside code


@dataclass(frozen=True)
class Span:
    """A piece of text in a style of its own.

    Attributes:
        style: "strong", "code", "soft", "good" or "bad"; the last three are colours, and plain in Markdown.
        link: a path relative to the document, or "#" and the title of a section.
    """

    text: str
    style: str = ""
    link: str | None = None


Inline = str | Span | Sequence[str | Span]


@dataclass(frozen=True)
class Paragraph:
    text: Inline


@dataclass(frozen=True)
class Bullets:
    items: Sequence[Inline]


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Table:
    """Attributes: columns: their heads. rows: a cell a column. words: so many columns from the left hold words."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Inline]]
    words: int = 1


@dataclass(frozen=True)
class Plot:
    """Attributes: name: of its file in plots/, without .svg. svg: as plots.py draws it. caption: what it shows."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Plots:
    """Plots that stand side by side where there is room."""

    plots: Sequence[Plot]


@dataclass(frozen=True)
class Fold:
    """Blocks that a reader opens: folded in HTML, under a small heading in Markdown."""

    title: Inline
    blocks: Sequence[Block]
    open: bool = False


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


Block = Paragraph | Bullets | Code | Table | Plots | Fold


@dataclass(frozen=True)
class Document:
    """Attributes: lead: what stands between the title and the contents. sections: what the contents name."""

    title: str
    lead: Sequence[Block]
    sections: Sequence[Section]

    def plots(self) -> list[Plot]:
        """All plots, in order."""
        found: list[Plot] = []
        waiting = [*self.lead, *(block for section in self.sections for block in section.blocks)][::-1]
        while waiting:
            block = waiting.pop()
            if isinstance(block, Plots):
                found += block.plots
            elif isinstance(block, Fold):
                waiting += block.blocks[::-1]
        return found

    # -----------------------------------------------------------------------------------------------------------------
    # HTML

    def html(self) -> str:
        """One page with its plots inside."""
        contents = " ".join(_html_inline(Span(section.title, link=f"#{section.title}")) for section in self.sections)
        parts = [f"<h1>{escape(self.title)}</h1>\n", *map(_html_block, self.lead)]
        if contents:
            parts.append(f'<nav aria-label="Contents">{contents}</nav>\n')
        for section in self.sections:
            parts.append(f'<section id="{_anchor(section.title)}">\n<h2>{escape(section.title)}</h2>\n')
            parts += [*map(_html_block, section.blocks), "</section>\n"]
        return html_page(self.title, "".join(parts), style=_STYLE)

    # -----------------------------------------------------------------------------------------------------------------
    # Markdown

    def markdown(self) -> str:
        """GitHub's Markdown, its plots in plots/."""
        parts = [f"# {_plain(self.title)}", *(part for block in self.lead for part in _markdown_block(block))]
        for section in self.sections:
            parts.append(f"## {_plain(section.title)}")
            parts += [part for block in section.blocks for part in _markdown_block(block)]
        return "\n\n".join(parts) + "\n"


def _spans(text: Inline) -> Iterator[Span]:
    for part in (text,) if isinstance(text, str | Span) else text:
        yield Span(part) if isinstance(part, str) else part


def _anchor(title: str) -> str:
    """As GitHub makes them from headings."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _target(link: str) -> str:
    # Quoting leaves no colon: what is no path of a file becomes none that a browser runs.
    return f"#{_anchor(link[1:])}" if link.startswith("#") else quote(link, errors="replace")


def _html_inline(text: Inline) -> str:
    parts = []
    for span in _spans(text):
        html = escape(span.text)
        if span.style == "code":
            html = f"<code>{html}</code>"
        elif span.style == "strong":
            html = f"<strong>{html}</strong>"
        elif span.style:
            html = f'<span class="{span.style}">{html}</span>'
        parts.append(html if span.link is None else f'<a href="{escape(_target(span.link))}">{html}</a>')
    return "".join(parts)


def _html_block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return f"<p>{_html_inline(text)}</p>\n"
        case Bullets(items):
            return "<ul>\n" + "".join(f"<li>{_html_inline(item)}</li>\n" for item in items) + "</ul>\n"
        case Code(text):
            return f"<pre>{escape(text)}</pre>\n"
        case Table():
            return _html_table(block)
        case Plots(plots):
            return f'<div class="plots">\n{"".join(map(_html_plot, plots))}</div>\n'
        case Fold(title, blocks, open):
            inner = "".join(map(_html_block, blocks))
            return f"<details{' open' if open else ''}><summary>{_html_inline(title)}</summary>\n{inner}</details>\n"


def _html_table(table: Table) -> str:
    def row(tag: str, cells: Iterable[Inline]) -> str:
        made = []
        for number, cell in enumerate(cells):
            name = "th" if number == 0 else tag
            scope = ' scope="row"' if number == 0 and tag == "td" else ""
            number_class = "" if number < table.words else ' class="number"'
            made.append(f"<{name}{scope}{number_class}>{_html_inline(cell)}</{name}>")
        return f"<tr>{''.join(made)}</tr>\n"

    body = "".join(row("td", cells) for cells in table.rows)
    return (
        f'<div class="scroll"><table>\n<thead>\n{row("th", table.columns)}</thead>\n<tbody>\n{body}</tbody>\n'
        "</table></div>\n"
    )


def _html_plot(plot: Plot) -> str:
    svg = plot.svg[plot.svg.index("<svg") :]
    # The names of groups would stand several times in one page; clips and markers have names by their content.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)").replace(GRID, "var(--line)")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(plot.caption)}"', 1)
    return f"<figure>{svg}<figcaption>{escape(plot.caption)}</figcaption></figure>\n"


def _markdown_block(block: Block, level: int = 3) -> list[str]:
    match block:
        case Paragraph(text):
            return [_begun(_markdown_inline(text))]
        case Bullets(items):
            return ["\n".join(f"- {_begun(_markdown_inline(item))}" for item in items)] if items else []
        case Code(text):
            fence = _fence(text, 3)
            return [f"{fence}\n{text}\n{fence}"]
        case Table(columns, rows, words):
            head = [_plain(column) for column in columns]
            rule = ["---" if number < words else "---:" for number in range(len(columns))]
            body = [[_markdown_inline(cell, table=True) for cell in row] for row in rows]
            return ["\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))]
        case Plots(plots):
            return [f"![{_plain(plot.caption)}](plots/{plot.name}.svg)" for plot in plots]
        case Fold(title, blocks):
            inner = [part for each in blocks for part in _markdown_block(each, level + 1)]
            return [f"{'#' * level} {_markdown_inline(title)}", *inner]


def _markdown_inline(text: Inline, table: bool = False) -> str:
    parts = []
    for span in _spans(text):
        if span.style == "code":
            fence = _fence(span.text, 1)
            gap = " " if span.text.startswith("`") or span.text.endswith("`") else ""
            code = " ".join(span.text.split("\n"))
            made = f"{fence}{gap}{code.replace('|', _BAR) if table else code}{gap}{fence}" if code.strip() else ""
        else:
            made = _plain(span.text)
            if span.style == "strong":
                made = f"**{made}**"
        parts.append(made if span.link is None else f"[{made}]({_target(span.link)})")
    return "".join(parts).strip()


def _fence(text: str, least: int) -> str:
    """Backticks that the text does not hold so many of."""
    return "`" * max(least, *(len(run) + 1 for run in re.findall("`+", text)), 0)


# What Markdown would read as more than text. Underscores inside words, and brackets before no address, are left alone.
_MARKS = re.compile(r"[\\`*<|~$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\](?=[(\[:])|&(?=#?\w+;)")


def _plain(text: str) -> str:
    return _MARKS.sub(r"\\\g<0>", re.sub(r"\s+", " ", text))


def _begun(line: str) -> str:
    """The line of a paragraph, which must not begin as a list or a quotation does."""
    return re.sub(r"^(\d*)([-+>=.)])", r"\1\\\2", line)


_STYLE = """
body { max-width: 1180px; }
h2 { margin: 2rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid var(--line); }
section { scroll-margin-top: 0.5rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; padding: 0.6rem 0; border: solid var(--line);
  border-width: 1px 0; margin: 1rem 0; }
p, li { max-width: 52rem; }
ul { padding-left: 1.3rem; }
.scroll { overflow-x: auto; margin: 0.6rem 0; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 0.25rem 0.7rem; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
tbody th { font-weight: normal; }
th:first-child { position: sticky; left: 0; background: var(--paper); padding-left: 0; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
td code { display: block; min-width: 16rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0.4rem 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 36rem; }
figcaption { color: var(--soft); font-size: 0.85rem; }
details { margin: 0.4rem 0; }
details > summary { padding: 0.15rem 0; }
@media (max-width: 700px) {
  th:first-child { white-space: normal; min-width: 6.5rem; overflow-wrap: anywhere; }
  table { font-size: 0.85rem; }
  th, td { padding: 0.25rem 0.4rem; }
  td code { min-width: 13rem; }
}
"""
