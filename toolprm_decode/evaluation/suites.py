"""Suites of questions with known answers, by name: the built-in world, public benchmarks, and files of one's own."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolprm_decode.errors import DataError, RequestError
from toolprm_decode.learning.world.world import SPLITS, STANDARD, World
from toolprm_decode.questions.readers import Skipped, gold_misfit, read_samples
from toolprm_decode.questions.samples import Sample

BUILT_IN_LIMIT = 1000  # questions of the built-in world, which has as many as one wants

# BFCL's categories, in the leaderboard's order: the AST score is the mean over the four of AST, a live one by counts.
SIMPLE = ("simple_python", "simple_java", "simple_javascript")
AST = (SIMPLE, ("multiple",), ("parallel",), ("parallel_multiple",))
LIVE_AST = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
IRRELEVANCE = ("irrelevance", "live_irrelevance")
_NON_LIVE = (*(category for part in AST for category in part), "irrelevance")
_LIVE = (*LIVE_AST, "live_irrelevance", "live_relevance")


@dataclass(frozen=True)
class Suite:
    """Questions, and how they are counted.

    Attributes:
        name: as it was asked for.
        samples: the questions.
        groups: the category of each, as long as samples.
        headline: the suite's own figure, a kind of `scoring.headline`: "accuracy", "bfcl-ast" or "f1".
        skipped: rows of the files that could not be used, and why.
        misfits: {id: why} of questions whose gold, by its first allowed values, breaks its tool's schema, so that
            answers under the grammar are mostly wrong. They count like any others, as in the published figures.
    """

    name: str
    samples: list[Sample]
    groups: list[str]
    headline: str
    skipped: list[Skipped]
    misfits: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _World:
    """A suite of the built-in world.

    Attributes:
        about: one line of help.
        unseen: for each world that gives questions in turn, whether its tools are unseen.
        natural: whether all names are words (True) or masks (False).
    """

    about: str
    unseen: tuple[bool, ...] = (False, True)
    natural: bool | None = None


@dataclass(frozen=True)
class _Public:
    """A suite of published files.

    Attributes:
        about: one line of help.
        headline: the figure that is published of it.
        files: {group: where its file lies in the folder of all data}, the first that is there; or without the folders
            in between.
        usual: the groups that are read where none are named.
        validation: the groups of the validation split, instead.
        sets: names for several groups.
    """

    about: str
    headline: str
    files: Mapping[str, Sequence[str]]
    usual: tuple[str, ...]
    validation: tuple[str, ...] = ()
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_WORLDS = {
    "built-in": _World("the built-in world, never trained on: unseen values and unseen tools in turn"),
    "built-in-values": _World("values that training never held, for tools that it did", (False,)),
    "built-in-tools": _World("tools that training never held", (True,)),
    "built-in-masked": _World("as built-in, with all names of tools and parameters masked", natural=False),
    "built-in-natural": _World("as built-in, with words for all names", natural=True),
}
_PUBLIC = {
    "bfcl": _Public(
        "Berkeley Function-Calling Leaderboard v4, all single-turn categories, or some: bfcl:multiple,live, ...",
        "bfcl-ast",
        {category: (f"bfcl/BFCL_v4_{category}.json",) for category in (*_NON_LIVE, *_LIVE)},
        (*_NON_LIVE, *_LIVE),
        sets={"non_live": _NON_LIVE, "live": _LIVE},
    ),
    "toolalpaca": _Public(
        "ToolAlpaca's questions on real APIs, as Hammer scores them; on simulated ones: toolalpaca:simulated",
        "f1",
        {
            "real": ("hammer/toolalpaca.json", "toolalpaca/eval_real.json"),
            "simulated": ("toolalpaca/eval_simulated.json",),
        },
        ("real",),
    ),
    "seal-tools": _Public(
        "Seal-Tools' test questions in one turn; dev.jsonl is its validation split",
        "f1",
        {
            "in-domain": ("seal_tools/test_in_domain.jsonl",),
            "out-domain": ("seal_tools/test_out_domain.jsonl",),
            "dev": ("seal_tools/dev.jsonl",),
        },
        ("in-domain", "out-domain"),
        ("dev",),
    ),
    "api-bank": _Public(
        "API-Bank's dialogues of levels 1 and 2, as Hammer publishes them",
        "f1",
        {"level-1": ("hammer/apibank_l1.json",), "level-2": ("hammer/apibank_l2.json",)},
        ("level-1", "level-2"),
    ),
}
SUITES: dict[str, str] = {
    **{name: suite.about for name, suite in _WORLDS.items()},
    **{name: suite.about for name, suite in _PUBLIC.items()},
}


def load_suite(
    name: str, *, data: str | Path | None = None, limit: int | None = None, seed: int = 0, split: str = "test"
) -> Suite:
    """The questions of a suite.

    Args:
        name: one of SUITES; of a public one the groups to take may follow, as in "bfcl:simple_python,parallel". Or a
            file or folder that `read_samples` takes, such as JSON lines {"tools", "question", "gold"}, with a
            "category" if there are several.
        data: folder of the public suites' files (default: $TOOLPRM_DATA).
        limit: questions at most, evenly of all groups; default all, of the built-in world 1,000.
        seed: which questions of the built-in world; which ones are taken where there is a limit.
        split: "test" or "validation", which the built-in world and Seal-Tools have.

    Raises:
        RequestError: there is no such suite, group, split or file, or the limit is below 1.
        DataError: the files cannot be used, or no question is left.
    """
    if limit is not None and limit < 1:
        raise RequestError(f"the limit must be 1 or more, not {limit}")
    if split not in SPLITS[1:]:
        raise RequestError(f"unknown split {split!r:.60}: suites have {' or '.join(SPLITS[1:])}")
    if name in _WORLDS:
        return _built_in(name, limit or BUILT_IN_LIMIT, seed, split)
    known, _, chosen = name.partition(":")
    if known in _PUBLIC:
        suite = _public(name, _PUBLIC[known], chosen, data, split)
    else:
        suite = _own(name, split)
    if not suite.samples:
        first = suite.skipped[0] if suite.skipped else None
        why = f": {first.file}, line {first.line}: {first.reason}" if first else ""
        raise DataError(f"the suite {name!r:.200} holds no question that can be used{why}")
    if limit is not None:
        suite = _selected(suite, limit, seed)
    misfits = {sample.id: said for sample in suite.samples if (said := gold_misfit(sample)) is not None}
    return replace(suite, misfits=misfits)


def _built_in(name: str, limit: int, seed: int, split: str) -> Suite:
    own = _WORLDS[name]
    worlds = [World(seed, STANDARD, split, unseen, own.natural) for unseen in own.unseen]
    drawn = [world.samples(-(-limit // len(worlds))) for world in worlds]
    samples = [sample for several in zip(*drawn, strict=True) for sample in several][:limit]
    asked = {"seen": "unseen values", "unseen": "unseen tools"}
    groups = [f"{asked[sample.meta['tools']]}, {sample.meta['names']} names" for sample in samples]
    return Suite(name, samples, groups, "accuracy", [])


def _public(name: str, suite: _Public, chosen: str, data: str | Path | None, split: str) -> Suite:
    samples: list[Sample] = []
    groups: list[str] = []
    skipped: list[Skipped] = []
    origins: dict[str, Path] = {}
    for group, path in _files(name, suite, _wanted(name, suite, chosen, split), data).items():
        read = read_samples(path, on_error="skip", check_gold=False)
        for sample in read:
            if sample.id in origins:
                raise DataError(f"{path}: a question has the id {sample.id!r:.80}, as one of {origins[sample.id]} has")
            origins[sample.id] = path
            samples.append(sample)
            groups.append(group)
        skipped += read.skipped
    return Suite(name, samples, groups, _headline(suite.headline, groups), skipped)


def _headline(kind: str, groups: Sequence[str]) -> str:
    """The kind, but where the leaderboard's score has nothing to be the mean of."""
    counted = {category for part in AST for category in part}
    return "accuracy" if kind == "bfcl-ast" and counted.isdisjoint(groups) else kind


def _wanted(name: str, suite: _Public, chosen: str, split: str) -> tuple[str, ...]:
    """The groups to read."""
    known = name.partition(":")[0]
    usual, possible = suite.usual, tuple(suite.files)
    if split == "validation":
        if not suite.validation:
            raise RequestError(f"the suite {known!r} has no validation split")
        usual = possible = suite.validation
    if not chosen.strip():
        return usual
    found: list[str] = []
    for part in map(str.strip, chosen.split(",")):
        groups = suite.sets.get(part, (part,))
        if not set(groups) <= set(possible):
            listed = ", ".join([*possible, *suite.sets])
            raise RequestError(f"unknown category {part!r:.60} of {known!r}: use some of {listed}")
        found += groups
    return tuple(dict.fromkeys(found))


def _files(name: str, suite: _Public, groups: Sequence[str], data: str | Path | None) -> dict[str, Path]:
    """The file of each group."""
    place = data or os.environ.get("TOOLPRM_DATA")
    example = suite.files[groups[0]][0]
    how = f"name the folder that holds {example} (data, or TOOLPRM_DATA)"
    if not place:
        raise RequestError(f"{name!r:.60} is read from files: {how}")
    folder = Path(place)
    if not folder.is_dir():
        raise RequestError(f"{name!r:.60} is read from files, and there is no folder {folder}: {how}")
    found: dict[str, Path] = {}
    missing: list[str] = []
    for group in groups:
        places = [folder / one for file in suite.files[group] for one in (file, Path(file).name)]
        path = next((one for one in places if one.is_file()), None)
        if path is None:
            missing.append(str(places[0]))
        else:
            found[group] = path
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        rest = f"; to go without, ask for {name.partition(':')[0]}:{','.join(found)}" if found else ""
        raise RequestError(f"{name!r:.60} lacks {missing[0]}{more}: {how}{rest}")
    return found


def _own(name: str, split: str) -> Suite:
    """The questions of a file or folder."""
    path = Path(name)
    try:
        is_there = path.exists()
    except OSError:
        is_there = False
    if not is_there:
        listed = ", ".join(SUITES)
        raise RequestError(f"unknown suite {name!r:.60}: use one of {listed}, or a file or folder that is there")
    if split != "test":
        raise RequestError(f"{name:.200}: files are taken whole: name those of the {split} split themselves")
    read = read_samples(path, on_error="skip")
    samples = list(read)
    groups = [str(sample.meta.get("category", path.stem)) for sample in samples]
    return Suite(
        name, samples, groups, _headline("bfcl-ast" if read.shape == "bfcl" else "accuracy", groups), read.skipped
    )


def _selected(suite: Suite, limit: int, seed: int) -> Suite:
    """So many questions, evenly of all groups: small ones whole, of the others equally many, as the seed says.

    With a higher limit all of these stay.
    """
    places: dict[str, list[int]] = {}
    for place, group in enumerate(suite.groups):
        places.setdefault(group, []).append(place)
    for group, own in places.items():
        random.Random(f"{seed} {group}").shuffle(own)
    turns = [own[turn] for turn in range(max(map(len, places.values()))) for own in places.values() if turn < len(own)]
    chosen = sorted(turns[:limit])
    samples = [suite.samples[place] for place in chosen]
    return replace(suite, samples=samples, groups=[suite.groups[place] for place in chosen])
