"""A report says every number of its figures, in HTML and in Markdown, and stands what is missing or hostile."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from toolprm_decode.errors import RequestError
from toolprm_decode.evaluation.report import write_report

from .figures import figures

VOID = {"meta", "br", "path", "use", "rect", "image"}


class Page(HTMLParser):
    """The texts and tags of a page that closes what it opens."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(figures(), folder / "out")
    return folder / "out"


def read(folder: Path) -> tuple[str, str]:
    """The texts of the page, and the Markdown without its backslashes."""
    html = " ".join(Page((folder / "report.html").read_text(encoding="utf-8")).texts)
    return html, (folder / "report.md").read_text(encoding="utf-8").replace("\\", "")


SHARES = {"accuracy", "low", "high", "headline", "headline_low", "headline_high", "any_right", "trajectory_accuracy"}
SHARES |= {"wrong", "wrong_recall", "right"}
DIGITS = {"loss": 4, "auc": 4, "ece": 3, "score": 3, "logprob": 2}


def said(value: Any, key: str = "", signed: bool = False) -> Iterator[str]:
    """What a reader should find of the figures: an oracle of its own."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from said(each, name, "difference" in value)
    elif isinstance(value, list):
        for each in value:
            yield from said(each, key)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, str):
        if key not in ("headline", "page"):
            yield value
    elif key == "difference" or (signed and key in ("low", "high")):
        yield format(100 * value, "+.1f")
    elif key in SHARES:
        yield format(100 * value, ".1f")
    elif key in DIGITS:
        yield format(value, f".{DIGITS[key]}f")
    elif key == "x":
        yield f"{value:g}"
    else:
        yield f"{round(value):,}"


def test_both_forms_say_every_word_and_number(folder: Path) -> None:
    html, markdown = read(folder)
    wanted = set(said(figures()))
    assert len(wanted) > 400
    for text in wanted:
        assert text in html, text
        assert text in markdown, text


def test_intervals_stand_with_their_values_and_what_differs_is_bold(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "<strong>+12.6 [+10.2, +15.0]</strong>" in html and "**+12.6 [+10.2, +15.0]**" in markdown
    assert ">+0.9 [-1.6, +3.3]<" in html and "| +0.9 [-1.6, +3.3] |" in markdown
    assert "<strong>78.1 [75.5, 80.6]</strong>" in html  # the best one
    assert "- ✓ holds: **Step beams beat best-of-n at equal tokens** – +3.8 points" in markdown
    assert '<span class="good">✓ holds</span>' in html and '<span class="bad">✗ does not hold</span>' in html


def test_the_page_is_one_file_whose_links_lead_somewhere(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "default-src 'none'" in text and "prefers-color-scheme" in text and "@import" not in text
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert {"#strategies", "#failures", "trees/simple_3.html"} <= set(links)
    assert all(link[1:] in ids for link in links if link.startswith("#"))
    used = [value or "" for tag, attributes in page.tags if tag == "use" for value in attributes.values()]
    assert all(value[1:] in ids for value in used if value.startswith("#"))
    assert sum(tag == "svg" for tag, _ in page.tags) == len(list((folder / "plots").iterdir())) == 10


def test_the_markdown_shows_the_plots_that_were_written(folder: Path) -> None:
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)
    assert sorted(shown) == sorted(f"plots/{path.name}" for path in (folder / "plots").iterdir())
    for line in markdown.splitlines():
        if line.startswith("| ---"):
            assert set(line) <= set("| -:")


def test_figures_come_back_as_they_were_given(folder: Path) -> None:
    assert json.loads((folder / "figures.json").read_text(encoding="utf-8")) == figures()


def test_the_same_figures_give_the_same_files(folder: Path, tmp_path: Path) -> None:
    write_report(figures(), tmp_path)
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_suite_and_rows_are_enough(tmp_path: Path) -> None:
    write_report({"suite": "mine", "rows": []}, tmp_path)
    html, markdown = read(tmp_path)
    assert "No strategy was measured." in html and "No strategy was measured." in markdown
    write_report({"suite": "mine", "rows": [{"strategy": "greedy", "accuracy": 0.5}]}, tmp_path)
    html, markdown = read(tmp_path)
    assert "greedy" in html and "50.0" in html and "| greedy | **50.0** |" in markdown


@pytest.mark.parametrize("missing", ["suite", "rows"])
def test_without_those_there_is_no_report(missing: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=missing):
        write_report({key: value for key, value in figures().items() if key != missing}, tmp_path)


def without_numbers(value: Any, gone: float | None) -> Any:
    if isinstance(value, dict):
        return {key: without_numbers(each, gone) for key, each in value.items()}
    if isinstance(value, list):
        return [without_numbers(each, gone) for each in value]
    return gone if isinstance(value, int | float) and not isinstance(value, bool) else value


@pytest.mark.parametrize("gone", [None, math.nan])
def test_missing_numbers_are_dashes(gone: float | None, tmp_path: Path) -> None:
    write_report(without_numbers(figures(), gone), tmp_path)
    html, markdown = read(tmp_path)
    assert "| greedy | – | – | – |" in markdown
    for text in (html, markdown):
        assert not re.search(r"\b(nan|inf|None)\b", text)
    json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_each_key_may_be_missing_or_empty(tmp_path: Path) -> None:
    least = {"suite": "mine", "rows": figures()["rows"][:1]}
    rest = {key: value for key, value in figures().items() if key not in least}
    write_report({**least, **{key: type(value)() for key, value in rest.items()}}, tmp_path)
    write_report({**least, **dict.fromkeys(rest)}, tmp_path)
    bare = copy.deepcopy(figures())
    for key, value in bare.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            bare[key] = [{}]
    write_report({**bare, "sweep": {"cells": [{}]}}, tmp_path)
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def hostile(value: Any) -> Any:
    """The same figures with texts that would be marks in HTML and Markdown."""
    if isinstance(value, dict):
        return {key: hostile(each) for key, each in value.items()}
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return f"<script>*{value}*</script>|`&amp;\n[x](javascript:y)" if isinstance(value, str) else value


def test_texts_of_the_figures_are_only_texts(tmp_path: Path) -> None:
    write_report(hostile(figures()), tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "em"} & {tag for tag, _ in page.tags}
    assert "<script>*parallel_17*</script>|`&amp;\n[x](javascript:y)" in page.texts
    assert not any("javascript:" in (a.get("href") or "") for _, a in page.tags)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"(`+)(?:(?!\1).)+?(?<!`)\1(?!`)", "", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL))
    assert not re.search(r"(?<!\\)<", outside) and not re.search(r"(?<!\\)\]\(javascript", outside)
    tables = re.findall(r"(?:^\|.*\n?)+", markdown, re.MULTILINE)
    assert len(tables) > 10
    for table in tables:  # a bar that is no border is escaped, so that all rows have as many cells
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="the report cannot be written"):
        write_report({"suite": "mine", "rows": []}, tmp_path / "file" / "report")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on PATH to open the page in")
def test_a_browser_opens_the_page_without_complaint(folder: Path, tmp_path: Path) -> None:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--enable-logging=stderr", "--dump-dom", (folder / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert "How it was measured" in done.stdout
