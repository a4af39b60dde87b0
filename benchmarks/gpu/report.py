"""The record of a run as Markdown: targets and ratios first, then what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

COMMAND = "python -m benchmarks.gpu --json FILE --markdown benchmarks/results/gpu.md"


@dataclass(frozen=True)
class Target:
    """What this package asks of itself.

    Attributes:
        text: the measure. bound: it is to be at least this where `least`, else at most.
        table: whose rows are meant: those with these `values`, of which the worst one counts. column: of them.
    """

    text: str
    bound: float
    least: bool
    table: str
    column: str
    values: dict[str, Any]

    def measured(self, record: dict[str, Any]) -> float | None:
        """The worst of the rows; None where none was measured."""
        rows = [row for row in record["tables"][self.table] if all(row.get(k) == v for k, v in self.values.items())]
        found = [row[self.column] for row in rows if row.get(self.column) is not None]
        return (min if self.least else max)(found, default=None)

    def met(self, value: float) -> bool:
        """Whether a measured value is good enough."""
        return value >= self.bound if self.least else value <= self.bound


_ATTENTION = {"rows": 64, "prefix": 2000}
_DECODE = {"beams": 4, "width": 16, "graphs": True}
TARGETS = (
    Target(
        "a draw a row, 64 rows of the whole vocabulary: time over that of reading logits and masks",
        2.0, False, "sampling", "ours_over_roofline", {"rows": 64, "draws": 1},
    ),
    Target(
        "attention of 64 rows behind 2,000 tokens: share of its roofline",
        0.6, True, "attention", "share_of_roofline", _ATTENTION,
    ),
    Target(
        "  times as fast as the best of torch's ways",
        3.0, True, "attention", "best_torch_over_ours", _ATTENTION,
    ),
    Target(
        "4 beams of 16 candidates on the 7B shape, 0.5B reward model, 1,000 tokens before: time an answer's token over "
        "greedy decoding",
        1.5, False, "decode", "over_greedy",
        {**_DECODE, "policy": "7B", "prm": "0.5B", "prompt": 1000, "distinct": False},
    ),
    Target(
        "time in the core a pass, us, with 64 candidates that are all different",
        200.0, False, "decode", "core_us_a_pass", {**_DECODE, "distinct": True},
    ),
)  # fmt: skip


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _share(value: Any) -> str:
    return "-" if value is None else f"{value:.1%}"


def _search(row: dict[str, Any]) -> str:
    if row.get("beams") is None:
        return "greedy"
    return f"{row['beams']} x {row['width']}{', distinct' if row['distinct'] else ''}"


# Title, and key of the row or what makes the cell of it.
Column = tuple[str, str | Callable[[dict[str, Any]], str]]


def _of(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: _share(row.get(key))


def _peer(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "fails" if f"{key}_failed" in row else _number(row.get(f"{key}_us"))


TABLES: dict[str, tuple[str, str, Sequence[Column]]] = {
    "sampling": (
        "Draws",
        "Microseconds on the device, nothing in its cache: mask, temperature and draws. *torch*: masked_fill, softmax "
        "and a race of exponentials (or inversion of the cumulative sum, or the largest of the race where draws are "
        "distinct); *multinomial*: torch.multinomial instead, which waits for the device; *xgrammar*: its mask in "
        "place, then as torch. *whole call*: ours from Python, with what is sent there and back.",
        [
            ("rows", "rows"), ("logits", "dtype"), ("draws", "draws"), ("distinct", "distinct"),
            ("ours / roofline", "ours_over_roofline"), ("torch / ours", "torch_over_ours"),
            ("compiled / ours", "torch_compiled_over_ours"), ("xgrammar / ours", "xgrammar_over_ours"),
            ("roofline", "roofline_us"), ("ours", "ours_us"), ("whole call", "whole_call_us"),
            ("torch", _peer("torch")), ("multinomial", _peer("torch_multinomial")),
            ("compiled", _peer("torch_compiled")), ("xgrammar", _peer("xgrammar")),
        ],
    ),
    "attention": (
        "Attention behind a shared prefix",
        "Microseconds a layer on the device, nothing in its cache: bfloat16, a token of each row behind one prefix and "
        "100 tokens of its own. *sdpa*: torch's scaled_dot_product_attention over whole sequences that lie there "
        "beforehand, with key heads repeated, by backend, or not (*gqa*). *flex*: compiled flex_attention over all "
        "rows as one sequence, the prefix read once. *torch path*: ours without kernels, which writes the new keys as "
        "well, to be compared with *ours, writing*.",
        [
            ("heads of", "shape"), ("rows", "rows"), ("prefix", "prefix"),
            ("share of roofline", _of("share_of_roofline")), ("best of torch / ours", "best_torch_over_ours"),
            ("roofline", "roofline_us"), ("ours", "ours_us"),
            ("ours, writing", "ours_with_writes_us"), ("torch path", "torch_pass_us"), ("sdpa gqa", _peer("sdpa_gqa")),
            ("sdpa flash", _peer("sdpa_flash")), ("sdpa efficient", _peer("sdpa_efficient")),
            ("sdpa cudnn", _peer("sdpa_cudnn")), ("sdpa math", _peer("sdpa_math")), ("flex", _peer("flex")),
            ("cutting tiles, host", "cutting_tiles_host_us"),
        ],
    ),
    "copies": (
        "Copies of partly filled blocks",
        "Microseconds of a whole call, from Python until the device is done: 64 copies of 8 slots, all layers.",
        [
            ("shape", "shape"), ("layers", "layers"), ("torch / ours", "torch_over_ours"), ("roofline", "roofline_us"),
            ("ours", "ours_whole_call_us"), ("torch, a layer at a time", "torch_whole_call_us"),
        ],
    ),
    "prompts": (
        "Reading prompts",
        "By the policy, nothing of them read before.",
        [
            ("policy", "policy"), ("tokens", "prompt_tokens"), ("seconds", "seconds"),
            ("tokens a second", "tokens_per_second"), ("share of roofline", _of("share_of_roofline")),
        ],
    ),
    "decode": (
        "Whole decodes",
        "Random weights in bfloat16, prompts read beforehand. *search*: beams x width. *over greedy*: time an answer's "
        "token over that of greedy decoding of the same policy and prompt, by graphs. *pass*: median of the policy's, "
        "its head included. *roofline*: weights, rows of the head and keys that all passes have to read. *core*: time "
        "in the compiled core a pass. *outside*: share of the time outside the models' passes.",
        [
            ("policy", "policy"), ("reward model", "prm"), ("prompt", "prompt_tokens"), ("search", _search),
            ("graphs", "graphs"), ("over greedy", "over_greedy"), ("a pass over greedy's", "pass_over_greedy"),
            ("share of roofline", _of("share_of_roofline")), ("ms an answer's token", "ms_an_answer_token"),
            ("pass, ms", "policy_pass_ms"),
            ("policy tokens a second", "policy_tokens_per_second"), ("rows a pass", "rows_a_pass"),
            ("passes", "passes"), ("answer tokens", "answer_tokens"), ("core, us a pass", "core_us_a_pass"),
            ("outside", _of("outside_passes_share")), ("memory, GiB", "peak_memory_gib"),
        ],
    ),
}  # fmt: skip


def empty() -> dict[str, Any]:
    """The record of a run that has not been."""
    return {
        "suite": "gpu",
        "dry_run": False,
        "command": None,
        "machine": None,
        "peaks": None,
        "checks": [],
        "tables": {name: [] for name in TABLES},
        "failed": [],
        "not_run": [],
    }


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    lines = ["# Kernels and decodes on a GPU", "", *_head(record), "", "## Targets", ""]
    lines += ["| measure | target | measured | |", "|---|---|---|---|"]
    for target in TARGETS:
        value = target.measured(record)
        met = "" if value is None else "met" if target.met(value) else "missed"
        bound = f"at {'least' if target.least else 'most'} {target.bound:g}"
        lines.append(f"| {target.text} | {bound} | {_number(value)} | {met} |")
    for name, (title, text, columns) in TABLES.items():
        lines += ["", f"## {title}", "", text, ""]
        lines += [_line(column for column, _ in columns), "|---" * len(columns) + "|"]
        for row in record["tables"][name]:
            lines.append(_line(cell(row) if callable(cell) else _number(row.get(cell)) for _, cell in columns))
        if not record["tables"][name]:
            lines.append("| not measured" + " |" * len(columns))
    if record["machine"] is not None:
        for title, items in (("Failed", record["failed"]), ("Not run: the time was up", record["not_run"])):
            lines += ["", f"## {title}", "", *([f"- {item}" for item in items] or ["Nothing."])]
    return "\n".join(lines) + "\n"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _head(record: dict[str, Any]) -> list[str]:
    machine = record["machine"]
    if machine is None:
        return [
            "No GPU has been had so far: nothing below was measured, and on GPUs the kernels have been compiled but "
            "never run. To fill this page, on a machine with one:",
            "",
            f"```bash\n{COMMAND}\n```",
        ]
    if record["dry_run"]:
        told = ["Dry run, no figures: every measurement was gone through with tiny sizes, and nothing was timed."]
    else:
        peaks = record["peaks"] or {}
        told = [
            f"Made on {machine['date'][:10]} with {machine['device']}, driver {machine.get('driver')}, torch "
            f"{machine['torch']}, triton {machine['triton']}, transformers {machine['transformers']}, by",
            "",
            f"```bash\n{record['command']}\n```",
            "",
            f"Rooflines are of this run: a copy moved {_number(_scaled(peaks.get('bytes_per_second'), 1e-12))} TB/s, a "
            f"bfloat16 product of 8,192 x 8,192 matrices made {_number(_scaled(peaks.get('flops'), 1e-12))} TFLOP/s. "
            f"The events around one kernel of a single number are {_number(peaks.get('launch'))} us apart: no "
            "measurement of the device can be below that.",
        ]
    return [*told, "", "Checks:", "", *([f"- {check}" for check in record["checks"]] or ["- none were made"])]


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by
