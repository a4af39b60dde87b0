"""The tree is drawn as text and as a page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from toolprm_decode import Decoder, Search, SearchTree, Step
from toolprm_decode.errors import RequestError
from toolprm_decode.search.node import Node

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
    marks = " / ".join(text for _, tag, text in page.texts if tag == "small")
    assert re.sub(r" / (node \d)( / )?", r" / \1\n", marks).splitlines() == [
        "kept / x2 / rank -0.500 / 1 of 2 kept / node 0",
        "answer / closed by max_tokens / x2 / rank -0.500 / node 2",
        "finished, pruned / x2 / rank -0.500 / node 3",
        "pruned / x2 / rank -0.500 / node 1",
    ]
    assert [text for _, tag, text in page.texts if text == "-1.25"] == ["-1.25"] * 4


def test_the_page_loads_nothing(tree: SearchTree, tmp_path: Path) -> None:
    text = tree.to_html(tmp_path / "tree.html", title="a", note="b").read_text(encoding="utf-8")
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any("src" in attributes for _, attributes in page.tags)
    targets = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
    assert all(target is not None and target.startswith("#") for target in targets)
    assert "default-src 'none'" in text and "prefers-color-scheme" in text and "url(" not in text


def test_a_page_of_a_real_search_holds_every_step(tmp_path: Path) -> None:
    search = Search(beams=3, width=4, temperature=1.5, max_tokens=50, seed=2, allow_no_call=False)
    tree = Decoder(policy(), reward(), tokenizer=tokenizer()).decode([SWITCH, SWAP], "é", search).tree
    page = Page(tree.to_html(str(tmp_path / "tree.html")).read_text(encoding="utf-8"))
    codes = sorted(text for _, tag, text in page.texts if tag == "code")
    assert codes == sorted(s.text.strip("\n") for n in tree.nodes for s in n.steps)


def test_depth_and_emptiness_are_no_problem(tmp_path: Path) -> None:
    chain = [node(i - 1 if i else None, f"step {i}") for i in range(3000)]
    deep = SearchTree(chain, best=2999)
    page = Page(deep.to_html(tmp_path / "deep.html", right=[True] * 3000).read_text(encoding="utf-8"))
    codes = [(depth, text) for depth, tag, text in page.texts if tag == "code"]
    assert [text for _, text in codes] == [f"step {i}" for i in range(3000)]
    assert max(depth for depth, _ in codes) < 20  # browsers flatten what is nested hundreds deep
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert len(ids) == len(set(ids)) and {link[1:] for link in links if link} <= set(ids)
    assert len(str(SearchTree(chain[:40], best=39)).splitlines()) == 41
    empty = SearchTree([])
    assert str(empty) == "start"
    assert empty.to_html(tmp_path / "empty.html").is_file()


def test_a_step_without_text_or_score_is_named(tmp_path: Path) -> None:
    quiet = SearchTree([Node(None, (Step("TOTAL_FINISH", "", 3, 3, ""),), float("-inf"), 1, True, True, False)], best=0)
    assert str(quiet).splitlines()[1] == "└── TOTAL_FINISH  (nothing)  [answer]"
    assert "(nothing)" in quiet.to_html(tmp_path / "quiet.html").read_text(encoding="utf-8")


def verdict(tree: SearchTree, right: list[bool | None], tmp_path: Path) -> list[str]:
    """The lines in which the page says where gold was lost, without their tags."""
    text = tree.to_html(tmp_path / "tree.html", right=right).read_text(encoding="utf-8")
    Page(text)
    found = re.search(r'class="verdict[^>]*>(.*?)</(?:p|section)>', text, re.DOTALL)
    assert found is not None
    return [line for line in re.sub("<[^>]*>", "", found[1]).splitlines() if line]


def candidate(parent: int | None, score: float, kept: bool = True, finished: bool = False) -> Node:
    return Node(parent, (step("text", score),), score - 1, 1, kept, finished, False)


def test_the_page_says_where_a_right_candidate_was_pruned(tmp_path: Path) -> None:
    nodes = [
        candidate(None, 0.9),
        candidate(0, 0.41, kept=False),
        candidate(0, 0.87),
        candidate(0, 0.95),
        candidate(2, 0.8, finished=True),
    ]
    assert verdict(SearchTree(nodes, best=4), [True, True, False, False, False], tmp_path) == [
        "Where gold was lost",
        "After node 0, pruned here: a right candidate, node 1, with score 0.410 (rank -0.590) "
        "lost to score 0.870 (rank -0.130) of node 2.",
    ]
    page = Page((tmp_path / "tree.html").read_text(encoding="utf-8"))
    items = {
        attributes["id"]: attributes.get("data-right") for tag, attributes in page.tags if tag == "li" if attributes
    }
    assert items == {"n0": "yes", "n1": "yes", "n2": "no", "n3": "no", "n4": "no"}
    assert sum(text == "gold lost here" for _, _, text in page.texts) == 1


def test_the_page_says_where_a_right_candidate_was_never_drawn(tmp_path: Path) -> None:
    nodes = [candidate(None, 0.9), candidate(None, 0.5), candidate(0, 0.3), candidate(2, 0.8, finished=True)]
    right: list[bool | None] = [True, True, False, False]
    assert verdict(SearchTree(nodes, best=3), right, tmp_path)[1:] == [
        "After node 0, never drawn here: no right one among 1 candidate.",
        "After node 1: the search ended before it went on.",
    ]
    assert verdict(SearchTree(nodes, best=3), [False] * 4, tmp_path)[1:] == [
        "At the start, never drawn here: no right one among 2 candidates."
    ]


def test_the_page_tells_a_right_answer_from_one_that_was_not_chosen(tmp_path: Path) -> None:
    nodes = [candidate(None, 0.9, finished=True), candidate(None, 0.5, finished=True)]
    assert verdict(SearchTree(nodes, best=0), [True, False], tmp_path) == ["✓ The answer is right."]
    assert verdict(SearchTree(nodes, best=0), [False, True], tmp_path)[1:] == [
        "At the end: a right answer, node 1, with score 0.500 (rank -0.500) "
        "lost to score 0.900 (rank -0.100) of node 0."
    ]


def test_title_and_note_are_escaped_and_flags_are_counted(tree: SearchTree, tmp_path: Path) -> None:
    path = tree.to_html(tmp_path / "tree.html", title="<i>&", note='"<b>')
    page = Page(path.read_text(encoding="utf-8"))
    assert [(tag, text) for _, tag, text in page.texts if tag in ("title", "h1")] == [("title", "<i>&"), ("h1", "<i>&")]
    assert next(text for _, tag, text in page.texts if tag == "p") == '"<b>'
    with pytest.raises(RequestError, match="right has 3 flags for 4 candidates"):
        tree.to_html(tmp_path / "other.html", right=[True] * 3)


CHECKS = """
<script>
const hidden = () => [...document.querySelectorAll("main li")].filter((item) => !item.checkVisibility()).length;
const press = (id) => { document.getElementById(id).click(); return hidden(); };
const seen = { controls: !document.getElementById("controls").hidden, start: hidden(), pruned: press("pruned") };
seen.collapsed = press("collapse");
press("answer");
addEventListener("hashchange", () => setTimeout(() => {
  const top = document.querySelector("li:target").getBoundingClientRect().top;
  seen.target = location.hash;
  seen.reached = top >= 0 && top < innerHeight;
  seen.wide = document.documentElement.scrollWidth > innerWidth;
  seen.expanded = press("expand");
  seen.all = press("pruned");
  document.title = JSON.stringify(seen);
}));
</script>
"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on PATH to open the page in")
def test_a_browser_folds_hides_and_jumps(tmp_path: Path) -> None:
    nodes = [node(i - 1 if i else None, f"step {i}", finished=i == 29) for i in range(30)]
    nodes += [node(0, "other", kept=False), node(20, "another", kept=False)]
    path = SearchTree(nodes, best=29).to_html(tmp_path / "tree.html", right=[True] * 32)
    path.write_text(path.read_text(encoding="utf-8") + CHECKS, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    found = re.search("<title>(.*)</title>", done.stdout)
    assert found is not None and json.loads(found[1]) == {
        "controls": True,
        "start": 0,
        "pruned": 2,
        "collapsed": 29,  # all but the first of each section of twelve levels
        "target": "#n29",
        "reached": True,
        "wide": False,
        "expanded": 2,
        "all": 0,
    }
