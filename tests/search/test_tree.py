"""The tree is drawn as text and as a page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from toolprm_decode import Decoder, Search, SearchTree, Step
from toolprm_decode.search.tree import Node

from .models import SWAP, SWITCH, policy, reward, tokenizer


def step(text: str, score: float | None = 0.5) -> Step:
    return Step("ARG_VALUE", text, 0, len(text.encode()), "/0/arguments/x", score, -1.25)


def node(parent: int | None, text: str, kept: bool = True, finished: bool = False, closed: bool = False) -> Node:
    return Node(parent, (step(text),), -0.5, 2, kept, finished, closed)


@pytest.fixture
def tree() -> SearchTree:
    """Two ways from the start, one of them with two ends."""
    nodes = [
        node(None, "good"),
        node(None, "<script>alert('&')</script>", kept=False),
        node(0, "end\nline", finished=True, closed=True),
        node(0, "other", kept=False, finished=True),
    ]
    return SearchTree(nodes, best=2)


class Page(HTMLParser):
    """The texts of a page with their nesting of list items, and all its tags."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[int, str, str]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open.count("li"), self.open[-1], data))


def test_text_shows_scores_ranks_and_fates(tree: SearchTree) -> None:
    assert str(tree).splitlines() == [
        "start",
        "├── ARG_VALUE 0.500  good  [x2, rank -0.500]",
        "│   ├── ARG_VALUE 0.500  end",
        "│   │   line  [x2, rank -0.500, closed by max_tokens, answer]",
        "│   └── ARG_VALUE 0.500  other  [x2, rank -0.500, pruned, finished]",
        "└── ARG_VALUE 0.500  <script>alert('&')</script>  [x2, rank -0.500, pruned]",
    ]
    assert len(tree) == 4 and tree.path(3) == [0, 3]


def test_the_page_shows_the_same_nested_and_escaped(tree: SearchTree, tmp_path: Path) -> None:
    path = tree.to_html(tmp_path / "tree.html")
    assert path == tmp_path / "tree.html"
    page = Page(path.read_text(encoding="utf-8"))
    codes = [(depth, text) for depth, tag, text in page.texts if tag == "code"]
    assert codes == [(1, "good"), (2, "end\nline"), (2, "other"), (1, "<script>alert('&')</script>")]
    assert [attributes["class"] for tag, attributes in page.tags if tag == "li"] == [
        "answer",
        "answer",
        "pruned",
        "pruned",
    ]
    assert [text for _, tag, text in page.texts if tag == "b"] == ["0.500"] * 4
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any(name in ("src", "href") for _, attributes in page.tags for name in attributes)
    assert "prefers-color-scheme" in path.read_text(encoding="utf-8")


def test_a_page_of_a_real_search_holds_every_step(tmp_path: Path) -> None:
    search = Search(beams=3, width=4, temperature=1.5, max_tokens=50, seed=2, allow_no_call=False)
    tree = Decoder(policy(), reward(), tokenizer=tokenizer()).decode([SWITCH, SWAP], "é", search).tree
    page = Page(tree.to_html(str(tmp_path / "tree.html")).read_text(encoding="utf-8"))
    codes = sorted(text for _, tag, text in page.texts if tag == "code")
    assert codes == sorted(s.text.strip("\n") for n in tree.nodes for s in n.steps)


def test_depth_and_emptiness_are_no_problem(tmp_path: Path) -> None:
    chain = [node(i - 1 if i else None, f"step {i}") for i in range(3000)]
    deep = SearchTree(chain, best=2999)
    assert "step 2999" in deep.to_html(tmp_path / "deep.html").read_text(encoding="utf-8")
    assert len(str(SearchTree(chain[:40], best=39)).splitlines()) == 41
    empty = SearchTree([])
    assert str(empty) == "start"
    assert empty.to_html(tmp_path / "empty.html").is_file()


def test_a_step_without_text_or_score_is_named(tmp_path: Path) -> None:
    quiet = SearchTree([Node(None, (Step("TOTAL_FINISH", "", 3, 3, ""),), float("-inf"), 1, True, True, False)], best=0)
    assert str(quiet).splitlines()[1] == "└── TOTAL_FINISH  (nothing)  [answer]"
    assert "(nothing)" in quiet.to_html(tmp_path / "quiet.html").read_text(encoding="utf-8")
