"""How well reward models judge answers: the figures of arXiv 2510.14703, table 2, for any models on any questions."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolprm_decode.decoding import Decoder
from toolprm_decode.errors import BudgetExceeded, DataError, RequestError
from toolprm_decode.learning.annotate import label_rollouts
from toolprm_decode.learning.collation import read_pieces
from toolprm_decode.learning.judging import PASS_TOKENS, judge
from toolprm_decode.learning.metrics import Judged, measure
from toolprm_decode.learning.records import Row, locate, read_trajectories, trajectory_rows
from toolprm_decode.learning.rollouts import RolloutSettings, roll_out
from toolprm_decode.questions.samples import Sample
from toolprm_decode.rewards import STEP_KINDS, ToolPRM

# Told how much is done, of how much.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answers:
    """Answers to questions, every step of them labelled. Iterates over the rows.

    Attributes:
        rows: a distinct answer each, as `records.trajectory_rows` makes them; those of one question in a row.
        skipped: (id, reason) of the questions that could not be asked.
        where: tells the place of a row by its number, 1 for the first.
    """

    rows: list[Row]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    where: Callable[[int], str] = "answer {}".format

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def collect_answers(
    samples: Sequence[Sample],
    decoder: Decoder,
    settings: RolloutSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Answers:
    """What a policy answers to questions: the distinct answers with their draws, labelled by each question's own rule.

    Args:
        decoder: asks the policy, in its own call format.
        settings: how it is asked; the policy, reward model and format that they name are not looked at.
        progress: called after each question, with how many are done.

    Raises:
        DataError: there are no questions, or none of them could be asked.
        ModelNotSupported: the policy's logits are not numbers.
    """
    rollouts = roll_out(samples, decoder, settings or RolloutSettings())
    rows: list[Row] = []
    for done, (sample, found) in enumerate(rollouts, 1):
        assert rollouts.format is not None
        rows += trajectory_rows(sample, rollouts.format, label_rollouts(sample, found))
        if progress is not None:
            progress(done + len(rollouts.skipped), len(samples))
    if not rows:
        why = ": {}: {}".format(*rollouts.skipped[0]) if rollouts.skipped else ""
        raise DataError(f"none of {len(samples)} questions could be asked{why}")
    return Answers(rows, rollouts.skipped)


def read_answers(folder: str | os.PathLike[str], split: str) -> Answers:
    """The answers of a labelled data set, as `toolprm annotate` writes it.

    Raises DataError where it has no such split, or a file of it is damaged.
    """
    rows = list(read_trajectories(folder, split))
    return Answers(rows, where=lambda number: locate(folder, "trajectories", split, number))


def judge_answers(prm: ToolPRM, answers: Iterable[Row], *, progress: Progress | None = None) -> Judged:
    """What a reward model says of the steps of labelled answers; steps of a kind without a tag are read, not judged.

    The margins are those of `prm.score` on each answer alone. The answers to a question are read together, what they
    begin with only once. `Judged.trajectories` are numbers of the answers, the same for every model; `Judged.weights`
    how often each was drawn.

    Args:
        answers: Answers, or rows like theirs.
        progress: called with how many answers are judged, and how many there are to judge.

    Raises:
        DataError: no answers at all, or a row that is not of the shape, with its place.
        RequestError: the model has no tag for any step of them.
        BudgetExceeded: an answer longer than the model can hold. ModelNotSupported: the model's logits are not numbers.
    """
    where: Callable[[int], str] = answers.where if isinstance(answers, Answers) else "answer {}".format
    limit = prm.engine.max_positions
    pieces = read_pieces(answers, prm, row_tokens=PASS_TOKENS, max_length=limit, where=where)
    if not pieces.queries:
        raise DataError("there are no answers to judge")
    if not pieces.trajectories:
        raise RequestError(f"this reward model judges {', '.join(prm.tags)}, and no answer has such a step")
    if pieces.too_long:
        raise BudgetExceeded(
            f"{pieces.too_long} of {pieces.trajectories} answers are longer, with their prompts, than the {limit} "
            "tokens that the reward model can hold: leave them out for all models"
        )
    return judge(prm, pieces, progress=progress)


def reward_rows(judged: Mapping[str, tuple[ToolPRM, Judged]]) -> list[dict[str, Any]]:
    """The table: a row for each model over all the steps that it judges, then for each kind of step and model.

    What all steps say depends on which ones a model judges. The rows of TOTAL_FINISH compare models: there each one
    decides over the whole answers, and nothing else.

    Args:
        judged: by the model's name, the model and what it said.

    Returns:
        {"model", "judges": the kinds, "kind": one of them or "all"} with the numbers of `measure`, under the model's
        temperature. The trajectories of a kind are those that have such a step, judged by these steps alone. What is
        not defined is nan.
    """
    rows = []
    for kind in ("all", *STEP_KINDS):
        for name, (prm, found) in judged.items():
            own = found if kind == "all" else found.pick(found.kinds == STEP_KINDS.index(kind))
            if kind == "all" or len(own):
                told = {"model": name, "judges": ", ".join(prm.tags), "kind": kind}
                rows.append(told | measure(own, prm.temperature)["all"])
    return rows


def calibration(judged: Judged, temperature: float, bins: int = 10) -> list[dict[str, float]]:
    """How far scores are probabilities: equal-width bins of the scores, those without a step left out.

    Returns:
        {"score": mean score, "right": share of right steps, "weight": of the steps}, by rising score.

    Raises RequestError for a temperature that is not above zero, or fewer bins than one.
    """
    if not 0 < temperature < math.inf:
        raise RequestError(f"the temperature must be a number above zero, not {temperature}")
    if bins < 1:
        raise RequestError(f"there must be at least one bin, not {bins}")
    scores = judged.scores(temperature)
    places = np.minimum((scores * bins).astype(np.int64), bins - 1)
    weight, score, right = (
        np.bincount(places, judged.weights * values, bins) for values in (np.ones(len(judged)), scores, judged.labels)
    )
    return [
        {"score": float(score[i] / weight[i]), "right": float(right[i] / weight[i]), "weight": float(weight[i])}
        for i in np.flatnonzero(weight)
    ]
