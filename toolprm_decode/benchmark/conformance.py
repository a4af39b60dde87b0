"""How engines judge the instances of public suites, case by case, and the ratchet that keeps this package's judgement.

    python -m toolprm_decode.benchmark.conformance                         # the table
    python -m toolprm_decode.benchmark.conformance --show false_negative   # the cases behind a figure
    python -m toolprm_decode.benchmark.conformance --record                # after an improvement

The data sets lie in $TOOLPRM_DATA. The ratchet holds one letter a case and nothing of the data sets.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from toolprm_decode.benchmark.schema_engines import Compiled, Engine, Refused, Unsatisfiable, engines
from toolprm_decode.benchmark.suites import SUITES, Group, Instance, Suite, find_data, read_suite
from toolprm_decode.errors import DataError, ToolprmError
from toolprm_decode.files import write_json, write_whole

RECORDS = Path(__file__).resolve().parents[2] / "tests" / "grammar" / "conformance"
_EMPTY = "-"  # a group without tests
COMMAND = "python -m toolprm_decode.benchmark.conformance"


class Category(Enum):
    """How a case came out, best first. The value is its letter in the ratchet's files."""

    RIGHT = "."
    WARNED = "w"  # an invalid instance was accepted, but the engine had warned that it would not enforce all
    REFUSED = "r"  # the schema was not compiled
    FALSE_NEGATIVE = "n"  # a valid instance was refused
    FALSE_POSITIVE = "p"  # an invalid instance was accepted

    @property
    def rank(self) -> int:
        """0 is best. A refusal comes before a wrong answer: who reads it knows."""
        return list(Category).index(self)


@dataclass(frozen=True)
class Outcome:
    """How the tests of a group came out, and what the engine said, or ""."""

    group: Group
    categories: tuple[Category, ...]
    message: str


@dataclass(frozen=True)
class Results:
    """All outcomes of a suite by one engine."""

    engine: str
    version: str
    suite: Suite
    outcomes: tuple[Outcome, ...]

    @cached_property
    def cases(self) -> list[tuple[Instance, Category]]:
        return [case for o in self.outcomes for case in zip(o.group.tests, o.categories, strict=True)]

    def counts(self, file: str | None = None) -> dict[str, int]:
        """Cases by category, of all files or of one; `cases`, `groups` that have any, those with all `groups_right`."""
        chosen = [o for o in self.outcomes if o.categories and (file is None or o.group.file == file)]
        found = Counter(category for o in chosen for category in o.categories)
        counts = {category.name.lower(): found[category] for category in Category}
        whole = sum(set(o.categories) <= {Category.RIGHT} for o in chosen)
        return {**counts, "cases": found.total(), "groups": len(chosen), "groups_right": whole}


def judge(engine: Engine, group: Group) -> Outcome:
    """Classifies the tests of a group.

    A schema that the engine calls unsatisfiable is one of which it accepts nothing. What needs documents from
    elsewhere is refused for every engine: none is given them.
    """
    if group.remote:
        return Outcome(group, (Category.REFUSED,) * len(group.tests), "refers to other documents")
    try:
        compiled = engine.compile(group.schema)
    except Unsatisfiable as error:
        nothing = Compiled(lambda text: False)
        return Outcome(group, tuple(_judge(nothing, test) for test in group.tests), str(error))
    except Refused as error:
        return Outcome(group, (Category.REFUSED,) * len(group.tests), str(error))
    return Outcome(group, tuple(_judge(compiled, test) for test in group.tests), "; ".join(compiled.warnings))


def _judge(compiled: Compiled, test: Instance) -> Category:
    try:
        accepted = compiled.accepts(test.text)
    except Refused:
        return Category.REFUSED
    if accepted == test.valid:
        return Category.RIGHT
    if not accepted:
        return Category.FALSE_NEGATIVE
    return Category.WARNED if compiled.warnings else Category.FALSE_POSITIVE


def run(engine: Engine, suite: Suite) -> Results:
    """Every case of a suite. What an engine raises beside Refused goes through, with the group's id."""
    outcomes = []
    for group in suite.groups:
        try:
            outcomes.append(judge(engine, group))
        except Exception as error:
            raise RuntimeError(f"{engine.name} failed at {suite.name}/{group.id}: {error!r}") from error
    return Results(engine.name, engine.version, suite, tuple(outcomes))


# ---------------------------------------------------------------- the ratchet


@dataclass(frozen=True)
class Change:
    """A case that came out otherwise than the ratchet says. case: number of the test in its group."""

    group: Group
    case: int
    before: Category
    after: Category
    message: str

    @property
    def worse(self) -> bool:
        return self.after.rank > self.before.rank

    def __str__(self) -> str:
        test = self.group.tests[self.case]
        name = f"{self.group.id}[{self.case}] ({self.group.description}: {test.description})"
        said = f": {self.message}" if self.message else ""
        return f"{name} was {self.before.name.lower()}, is {self.after.name.lower()}{said}"


def changes(results: Results, folder: Path = RECORDS) -> list[Change]:
    """What differs from the ratchet's file. Raises DataError where there is none, or it is of other data."""
    recorded = _read_record(results.suite, folder)
    found = []
    for outcome in results.outcomes:
        group = outcome.group
        letters = recorded.get(group.id, "")
        if len(letters) != len(group.tests):
            raise DataError(f"{_record_path(results.suite, folder)} does not fit the data at {group.id}")
        for case, (letter, after) in enumerate(zip(letters, outcome.categories, strict=True)):
            if (before := Category(letter)) != after:
                found.append(Change(group, case, before, after, outcome.message))
    return found


def record(results: Results, folder: Path = RECORDS) -> list[Change]:
    """Writes the results as the ratchet's file and returns what changed. Raises DataError where a case got worse."""
    changed: list[Change] = []
    if _record_path(results.suite, folder).exists():
        changed = changes(results, folder)
        if worse := [str(change) for change in changed if change.worse]:
            raise DataError("nothing recorded, for these got worse:\n" + "\n".join(worse))
    files: dict[str, list[str]] = {}
    for outcome in results.outcomes:
        letters = "".join(category.value for category in outcome.categories) or _EMPTY
        files.setdefault(outcome.group.file, []).append(letters)
    content = {
        "letters": {category.value: category.name.lower() for category in Category},
        "data": results.suite.digest,
        "counts": results.counts(),
        "cases": {file: textwrap.wrap(" ".join(groups), 110) for file, groups in files.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    write_whole(_record_path(results.suite, folder), text.encode())
    return changed


def _record_path(suite: Suite, folder: Path) -> Path:
    return folder / f"{suite.name}.json"


def _read_record(suite: Suite, folder: Path) -> dict[str, str]:
    """Letters by the group's id."""
    path = _record_path(suite, folder)
    if not path.is_file():
        raise DataError(f"there is no {path}: write it with `{COMMAND} --record`, in a checkout of the project")
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["data"] != suite.digest:
        raise DataError(f"{path} was recorded from other data: take it away and run `{COMMAND} --record`")
    return {
        f"{file}[{index}]": letters.replace(_EMPTY, "")
        for file, rows in content["cases"].items()
        for index, letters in enumerate(" ".join(rows).split())
    }


# ---------------------------------------------------------------- the table


def markdown(results: Sequence[Results], command: str) -> str:
    """Tables of all results: a row an engine and suite, then what each file of a suite came to."""
    made = sorted({f"{r.engine.partition(',')[0]} {r.version}" for r in results})
    lines = [
        "# Conformance",
        "",
        f"Made on {datetime.now(timezone.utc):%Y-%m-%d} with {', '.join(made)} by `{command}`; `TOOLPRM_DATA` names "
        "the folder with the data sets.",
        "",
        "A case is a schema of a public suite with one instance, written as json.dumps writes it, keys in the order of "
        "the data. *right*: accepted where valid, refused where not. *warned*: accepted though invalid, after a "
        "warning that not all is enforced. *refused*: the schema was not compiled; schemas that need documents from "
        "elsewhere count here for all. *false negative*: valid, but not legal. *false positive*: invalid, but legal. "
        "An engine that calls a schema unsatisfiable accepts nothing of it. toolprm_decode enforces formats, which is "
        "an option of the standard: draft2020-12's own file on them counts that as false negatives.",
        "",
        *_rows(
            ["suite", "engine", "right", "warned", "refused", "false negative", "false positive", "groups all right"],
            (
                [r.suite.name, r.engine, *_figures(r.counts()), "{groups_right} / {groups}".format(**r.counts())]
                for r in sorted(results, key=lambda r: SUITES.index(r.suite.name))
            ),
        ),
    ]
    for name in (name for name in SUITES if name.startswith("draft")):
        beside = [r for r in results if r.suite.name == name]
        if not beside:
            continue
        files = sorted({group.file for group in beside[0].suite.groups})
        legend = "Right of all cases; then warned w, refused r, false negatives n, false positives p."
        lines += ["", f"## {name}", "", legend, ""]
        lines += _rows(["file", *(r.engine for r in beside)], ([f, *(_cell(r, f) for r in beside)] for f in files))
    return "\n".join(lines) + "\n"


def _figures(counts: dict[str, int]) -> list[str]:
    right, *others = (counts[category.name.lower()] for category in Category)
    share = f"{right} / {counts['cases']} ({right / max(counts['cases'], 1):.1%})"
    return [share, *(str(count) for count in others)]


def _cell(results: Results, file: str) -> str:
    counts = results.counts(file)
    wrong = [f"{counts[c.name.lower()]}{c.value}" for c in Category if c != Category.RIGHT and counts[c.name.lower()]]
    return ", ".join([f"{counts['right']} / {counts['cases']}", *wrong])


def _rows(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def to_json(results: Sequence[Results]) -> list[dict[str, Any]]:
    """Counts of each engine and suite, as in the table."""
    return [
        {"suite": r.suite.name, "data": r.suite.digest, "engine": r.engine, "version": r.version, **r.counts()}
        for r in results
    ]


def _show(results: Results, wanted: set[Category], file: str | None) -> None:
    for outcome in results.outcomes:
        group = outcome.group
        if file is not None and group.file != file:
            continue
        for case, (test, category) in enumerate(zip(group.tests, outcome.categories, strict=True)):
            if category in wanted:
                where = f"{results.suite.name}/{group.id}[{case}]"
                print(f"{category.name.lower()}  {where}  {group.description}: {test.description}")
                said = f"  said: {outcome.message}" if outcome.message else ""
                print(f"    {json.dumps(group.schema)[:400]}  instance: {test.text[:200]}{said}")


# ---------------------------------------------------------------- the command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").partition("\n")[0])
    names = tuple(engines())
    known = ", ".join(names)
    parser.add_argument(
        "--engine", action="append", choices=names, metavar="NAME", help=f"{known} (default: ours and llguidance)"
    )
    parser.add_argument("--suite", action="append", choices=SUITES, metavar="NAME", help=f"{', '.join(SUITES)}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the data sets (default: $TOOLPRM_DATA)")
    parser.add_argument("--record", action="store_true", help="write the ratchet's files; no case may have got worse")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="DIR", help="where those files are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    categories = [category.name.lower() for category in Category]
    parser.add_argument(
        "--show", action="append", choices=categories, metavar="CATEGORY", help="print the cases, not the table"
    )
    parser.add_argument("--file", metavar="NAME", help="with --show: one file of the suite, such as allOf")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 2, with one line, where something is missing or a case got worse."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(given)
    try:
        data = find_data(args.data)
        suites = [read_suite(name, data) for name in args.suite or SUITES]
        chosen = ["ours"] if args.record else args.engine or (["ours"] if args.show else ["ours", "llguidance"])
        made = [engines()[name]() for name in chosen]
        results = [run(engine, suite) for engine in made for suite in suites]
        if args.record:
            for found in results:
                changed = record(found, args.records)
                print(f"{found.suite.name}: {len(changed)} cases changed; {found.counts()}")
        elif args.show:
            for found in results:
                _show(found, {Category[name.upper()] for name in args.show}, args.file)
        else:
            table = markdown(results, " ".join([COMMAND, *given]))
            if args.markdown:
                write_whole(args.markdown, table.encode())
            print(table, end="")
        if args.json:
            write_json(args.json, to_json(results))
    except ToolprmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
