"""Prints the record of a benchmark: ratios first, then what they are made of."""

from __future__ import annotations

from typing import Any

_RATIOS = {
    "speedup_plain": "times as fast as the plain loop",
    "speedup_plain_after_prefill": "  without the prompts",
    "speedup_careful": "times as fast as the careful loop",
    "speedup_careful_after_prefill": "  without the prompts",
    "speedup_careful_jump_forward": "times as fast as the careful loop that reads forced text in one pass",
    "speedup_careful_jump_forward_after_prefill": "  without the prompts",
    "width16_over_width1": "time of width 16 over width 1, one beam, decided policy",
    "width16_over_width1_after_prefill": "  without the prompts",
    "width16_over_width1_per_token": "  without the prompts, for each token of the answers",
    "prm_over_policy_tokens": "reward model's tokens over the policy's",
    "prm_over_policy_tokens_with_prompts": "  with the prompts",
    "outside_model_share": "share of the time outside the models' passes",
    "batch16_throughput": "throughput of a batch over one after another",
}


def print_forks(record: dict[str, Any]) -> None:
    """Prints the record of `toolprm benchmark forks` on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    ratios = Table("measure", "ratio", title="Ratios", title_justify="left")
    for key, text in _RATIOS.items():
        ratios.add_row(text, _ratio(key, record[key]))
    if (first := record.get("speedup_plain_first_rounds")) is not None:
        ratios.add_row(f"times as fast as the plain loop, first {first['rounds']} rounds", f"{first['ratio']:.2f}")
    agree = {True: "the same", False: "not the same", None: "-"}[record["answers_agree"]]
    ratios.add_row("answers of all loops", agree)
    console.print(ratios)

    seconds, tokens = record["seconds"], record["tokens"]
    runs = Table("decode", "seconds", "prompts", "policy tokens", "reward tokens", title="Runs", title_justify="left")
    runs.add_row(
        "ours", f"{seconds['ours']:.2f}", f"{seconds['ours_prefill']:.2f}", f"{tokens['policy']}", f"{tokens['prm']}"
    )
    for name, text in (("careful", "careful loop"), ("careful_jump_forward", "jumping"), ("plain", "plain loop")):
        if name in seconds:
            prefill = seconds[f"{name}_phases"]["prefill"]
            count = (f"{tokens[f'{name}_policy']}", f"{tokens[f'{name}_prm']}")
            runs.add_row(text, f"{seconds[name]:.2f}", f"{prefill:.2f}", *count)
    for key, text in (("width1", "width 1, one beam"), ("width16", "width 16, one beam")):
        if key in seconds:
            runs.add_row(text, f"{seconds[key]:.2f}", f"{seconds[f'{key}_prefill']:.2f}", "", "")
    for key, text in (("batch16", "batch"), ("one_after_another", "one after another")):
        if key in seconds:
            runs.add_row(f"{record['config']['requests']} requests, {text}", f"{seconds[key]:.2f}", "", "", "")
    console.print(runs)

    breakdown = Table("where our time goes", "seconds", "share", title="Breakdown", title_justify="left")
    for name, value in record["breakdown"].items():
        breakdown.add_row(name, f"{value:.3f}", f"{value / seconds['ours']:.1%}")
    console.print(breakdown)

    calibration = record["calibration"]
    console.print(
        f"At temperature {calibration['temperature']:.3g}, searches of several seeds found "
        f"{calibration['distinct']:.2f} distinct candidates in {record['config']['width']} draws of a step (a trained "
        f"policy: {calibration['target_distinct']:.2f}); seed {calibration['seed']}, which is compared, found "
        f"{tokens['distinct_candidates']} in all its {tokens['candidates']} draws.",
        soft_wrap=True,
    )
    if (widths := record["widths"]) is not None:
        console.print(
            f"One beam, at {calibration['confident_entropy']:.2f} nats a drawn token: of 16 draws a step "
            f"{widths['width16_distinct']:.2f} were distinct; the answers to {widths['requests']} requests had "
            f"{widths['width1_answer_tokens']} tokens at width 1 and {widths['width16_answer_tokens']} at width 16, "
            f"{widths['same_answers']} of them the same.",
            soft_wrap=True,
        )
    for title in ("config", "calibration", "tokens", "machine"):
        told = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in record[title].items())
        console.print(f"{title}: {told}", soft_wrap=True)
    console.print(f"answer: {record['answer']}", soft_wrap=True)


_MASK_RATIOS = {
    "compile": "compile a new schema, median",
    "compile_1_tools": "compile 1 tool",
    "compile_10_tools": "compile 10 tools",
    "compile_100_tools": "compile 100 tools",
    "compile_500_tools": "compile 500 tools",
    "first_mask": "first mask of a process",
    "slowest_mask_of_first_text": "  slowest of its first text",
    "first_pass_median": "mask on the first pass, median",
    "first_pass_mean": "  mean",
    "first_pass_p90": "  90th percentile",
    "first_pass_p99": "  99th percentile",
    "warm_median": "mask seen before, median",
    "warm_mean": "  mean",
    "warm_p90": "  90th percentile",
    "warm_p99": "  99th percentile",
    "accept": "accept a token, median",
    "fork": "fork",
    "memory": "memory of a compiled grammar, beside llguidance",
    "memory_walked": "  after the masks of a text",
}


def print_masks(record: dict[str, Any]) -> None:
    """Prints the record of `toolprm benchmark masks` on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    table = Table("ours over the best peer", "ratio", "at most", title="Ratios", title_justify="left")
    for key, text in _MASK_RATIOS.items():
        target = record["targets"].get(key)
        table.add_row(text, _ratio(key, record["ratios"][key]), "" if target is None else f"{target:g}")
    console.print(table)

    names = list(record["engines"])
    rows: list[tuple[str, tuple[str, ...]]] = [("schemas", ("schemas",))]
    for key, text in (("compile", "compile"), ("first_pass", "first pass"), ("warm", "seen before")):
        rows += [(f"{text}, us: {what}", (key, what)) for what in ("mean", "median", "p90", "p99", "max")]
    rows += [("accept, us: median", ("accept", "median")), ("fork, us: median", ("fork", "median"))]
    rows += [(f"{count} tools, ms", ("tools_ms", count)) for count in record["engines"][names[0]]["tools_ms"]]
    rows += [
        ("fresh process, us: ready", ("process", "ready")),
        ("  first compile", ("process", "first_compile")),
        ("  first mask", ("process", "first_mask")),
        ("  slowest mask of the first text", ("process", "slowest_mask")),
        ("bytes a grammar, compiled", ("memory", "compiled")),
        ("  after the masks of a text", ("memory", "walked")),
    ]
    figures = Table("", *names, title="Figures", title_justify="left")
    for text, path in rows:
        figures.add_row(text, *(_figure(record["engines"][name], path) for name in names))
    console.print(figures)
    for title in ("config", "versions", "machine"):
        told = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in record[title].items())
        console.print(f"{title}: {told}", soft_wrap=True)


def _figure(figures: Any, path: tuple[str, ...]) -> str:
    for key in path:
        figures = figures.get(key) if isinstance(figures, dict) else None
    if figures is None:
        return "-"
    return f"{figures:,}" if isinstance(figures, int) else f"{figures:,.2f}" if figures < 100 else f"{figures:,.0f}"


def _ratio(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if key.endswith("share") else f"{value:.2f}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
