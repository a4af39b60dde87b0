"""Figures of an evaluation as a run could give them, made up."""

from __future__ import annotations

import math
from typing import Any

STRATEGIES = (
    ("greedy", 0.6131, 212, 0, None),
    ("sample", 0.5712, 214, 0, None),
    ("majority-vote:16", 0.6428, 1873, 0, 0.7893),
    ("best-of-n:4", 0.6822, 611, 403, 0.7214),
    ("best-of-n:16", 0.7013, 1873, 1207, 0.7893),
    ("logprob-step-beam:4x4", 0.6217, 1544, 0, 0.7542),
    ("step-beam:2x8", 0.7391, 1102, 871, 0.8127),
    ("step-beam:4x4", 0.7304, 1350, 1003, 0.8244),
)
GROUPS = {"simple": (412, 0.08), "multiple": (203, 0.02), "parallel": (197, -0.05), "parallel_multiple": (188, -0.12)}


def _bounds(accuracy: float, n: int = 1000) -> dict[str, float]:
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n)
    return {"accuracy": accuracy, "low": accuracy - half, "high": accuracy + half}


def _row(strategy: str, accuracy: float, policy: int, prm: int, any_right: float | None) -> dict[str, Any]:
    ast = _bounds(accuracy + 0.0417)
    return {
        "strategy": strategy,
        "n": 1000,
        "refused": 3,
        "invalid": 17,
        "closed": 6,
        **_bounds(accuracy),
        "headline": ast["accuracy"],
        "headline_low": ast["low"],
        "headline_high": ast["high"],
        "policy_tokens": policy + 0.25,
        "prm_tokens": prm,
        "tokens": policy + prm + 0.25,
        "any_right": any_right,
        "groups": {name: {"n": n, **_bounds(min(0.97, accuracy + plus), n)} for name, (n, plus) in GROUPS.items()},
    }


def _cell(beams: int, width: int) -> dict[str, Any]:
    accuracy = 0.60 + 0.035 * math.log2(width) + 0.012 * math.log2(beams) - 0.002 * math.log2(beams) * math.log2(width)
    policy, prm = 150 + 61 * beams * width, 90 + 43 * beams * width
    return {
        "beams": beams,
        "width": width,
        **_bounds(accuracy),
        "tokens": policy + prm,
        "policy_tokens": policy,
        "prm_tokens": prm,
    }


def _curve(name: str, start: float, gain: float) -> dict[str, Any]:
    points = [
        {"strategy": f"{name}:{n}", "tokens": 310 + 147 * n, **_bounds(start + gain * math.log2(n))}
        for n in (1, 2, 4, 8, 16)
    ]
    return {"name": name, "points": points}


def figures() -> dict[str, Any]:
    """Every key that a report knows."""
    return {
        "suite": "bfcl",
        "headline": "bfcl-ast",
        "n": 1000,
        "split": "test",
        "seeds": [0, 1, 2],
        "command": "toolprm evaluate --suite bfcl --strategies greedy,step-beam:2x8 --seed 0,1,2 --report out",
        "versions": {"toolprm_decode": "0.1.0", "torch": "2.13.0", "transformers": "5.2.1"},
        "models": {"policy": "models/policy-1.5b", "reward model": "models/toolprm"},
        "created": "2026-03-14",
        "notes": ["Java and JavaScript questions are judged by the types that the benchmark names for them."],
        "claims": [
            {
                "claim": "Step beams beat best-of-n at equal tokens",
                "holds": True,
                "why": "+3.8 points at 1,973 tokens.",
            },
            {"claim": "Token-level beams fall below greedy", "holds": False, "why": "they are within its interval."},
            {
                "claim": "The useful width grows with the reward model",
                "holds": None,
                "why": "one reward model was run.",
            },
        ],
        "rows": [_row(*each) for each in STRATEGIES],
        "differences": [
            {
                "strategy": name,
                "against": "greedy",
                "difference": accuracy - 0.6131,
                "low": accuracy - 0.6131 - 0.0243,
                "high": accuracy - 0.6131 + 0.0239,
                "tokens": policy + prm,
                "against_tokens": 212,
            }
            for name, accuracy, policy, prm, _ in STRATEGIES[1:]
        ],
        "sweep": {"cells": [_cell(beams, width) for beams in (1, 2, 4, 8, 16) for width in (1, 2, 4, 8, 16)]},
        "curves": [
            _curve("step-beam", 0.617, 0.0307),
            _curve("best-of-n", 0.611, 0.0228),
            _curve("majority-vote", 0.608, 0.0092),
            {"name": "greedy", "points": [{"strategy": "greedy", "tokens": 457, **_bounds(0.6131)}]},
        ],
        "axes": [
            {
                "axis": "temperature",
                "curves": [
                    {
                        "name": name,
                        "points": [
                            {"x": x, **_bounds(top - 0.11 * (x - best) ** 2), "tokens": 1973 + 10 * x} for x in places
                        ],
                    }
                    for name, top, best in (("step-beam:2x8", 0.7391, 0.9), ("best-of-n:16", 0.7013, 0.7))
                    for places in [(0.3, 0.6, 0.8, 1.0, 1.3)]
                ],
            },
            {
                "axis": "aggregate",
                "curves": [
                    {
                        "name": "step-beam:2x8",
                        "points": [
                            {"x": x, **_bounds(accuracy), "tokens": 1973}
                            for x, accuracy in (
                                ("last", 0.7211),
                                ("min", 0.7391),
                                ("product", 0.7377),
                                ("mean", 0.7052),
                            )
                        ],
                    }
                ],
            },
        ],
        "rewards": [
            {
                "model": model,
                "judges": judges,
                "kind": kind,
                "steps": steps,
                "wrong": 0.1429,
                "loss": loss,
                "accuracy": 0.9911 - loss,
                "trajectory_accuracy": 0.9938 - loss if kind == "all" else None,
                "auc": 0.997 - loss,
                "wrong_recall": 0.9481 - loss,
                "ece": loss / 4,
            }
            for model, judges, loss in (
                ("toolprm", "step", 0.0286),
                ("c-prm", "step", 0.0371),
                ("orm", "answer", 0.0536),
            )
            for kind, steps in (("all", 66019), ("FUNC_NAME", 11013), ("ARG_VALUE", 31337))
        ],
        "calibration": [
            {
                "model": model,
                "bins": [
                    {"score": (i + 0.5) / 10, "right": ((i + 0.5) / 10) ** power, "weight": 100 + 37 * i * i}
                    for i in range(10)
                ],
            }
            for model, power in (("toolprm", 1.1), ("orm", 1.7))
        ],
        "failures": [
            {
                "id": f"parallel_{number}",
                "group": "parallel",
                "question": "Book a table for 4 in Oslo and for 2 in Bergen, both at 19:30.",
                "tools": ["book_table", "find_restaurant"],
                "gold": [
                    'book_table(city="Oslo", people=4, at="19:30")',
                    'book_table(city="Bergen", people=2, at="19:30")',
                ],
                "answers": [
                    {
                        "strategy": "greedy",
                        "calls": ['book_table(city="Oslo", people=4, at="19:30")'],
                        "right": False,
                        "score": 0.4127,
                        "logprob": -1.8243,
                    },
                    {
                        "strategy": "step-beam:2x8",
                        "calls": [
                            'book_table(city="Oslo", people=4, at="19:30")',
                            'book_table(city="Bergen", people=2, at="19:30")',
                        ],
                        "right": True,
                        "score": 0.9388,
                        "logprob": -2.3119,
                    },
                    {"strategy": "sample", "calls": [], "right": False, "score": None, "logprob": -7.4102},
                ],
            }
            for number in (17, 42)
        ],
        "trees": [
            {
                "id": "parallel_17",
                "question": "Book a table for 4 in Oslo …",
                "page": "trees/parallel_17.html",
                "note": "pruned at the city",
            },
            {"id": "simple_3", "question": "How warm is it in Lima?", "page": "trees/simple_3.html", "note": "right"},
        ],
        "skipped": [{"file": "BFCL_v3_java.json", "line": 83, "reason": "a tool has no description"}],
    }
