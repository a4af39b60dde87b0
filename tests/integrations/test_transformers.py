"""The logits processor in generate() of transformers: what it lets through, and that it changes nothing else."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch

from toolprm_decode import CallGrammar
from toolprm_decode.errors import ModelNotSupported, RequestError
from toolprm_decode.integrations.transformers import GrammarLogitsProcessor

from ..search.models import SWAP, SWITCH, TOOLS, policy, random_model, tokenizer

END = tokenizer().eos_token_id
CALLS = CallGrammar(TOOLS, tokenizer(), format="json-list", max_calls=1)
SMALL = CallGrammar.for_schema({"enum": ["a", "ab", "b", "bab", 1, 12, 125, True, None, ["a"]]}, tokenizer())
VALUE = CallGrammar.for_schema(
    {
        "type": "object",
        "properties": {"n": {"enum": [*range(-9, 140)]}, "on": {"type": "boolean"}},
        "required": ["n"],
        "additionalProperties": False,
    },
    tokenizer(),
)
PROMPTS = ["Light in the hall", "Oslo", "What will the weather be like over the next three days?"]


def inputs(prompts: list[str]) -> dict[str, torch.Tensor]:
    """A batch, padded on the left."""
    rows = [tokenizer()(prompt).input_ids for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[END] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def generate(processor: GrammarLogitsProcessor, prompts: list[str], model: Any = None, **options: Any) -> Any:
    given = inputs(prompts)
    options = {"max_new_tokens": 160, "do_sample": False, "pad_token_id": END, **options}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    made = (model or policy()).generate(**given, logits_processor=[processor], **options)
    made.answers = [answer(row[given["input_ids"].shape[1] :].tolist()) for row in made.sequences]
    return made


def answer(ids: list[int]) -> str:
    """The text up to the end; an answer has one."""
    assert END in ids, tokenizer().decode(ids)
    return str(tokenizer().decode(ids[: ids.index(END)]))


def test_greedy_is_the_likeliest_legal_token() -> None:
    made = generate(GrammarLogitsProcessor(CALLS), PROMPTS)
    for prompt, text in zip(PROMPTS, made.answers, strict=True):
        assert CALLS.accepts(text)
        ids, matcher = tokenizer()(prompt).input_ids, CALLS.matcher()
        while not matcher.is_stopped:
            token = likeliest(ids, matcher)
            matcher.accept(token)
            ids.append(token)
        assert matcher.text == text


def likeliest(ids: list[int], matcher: Any) -> int:
    logits = scores_after(ids)
    return max(legal(matcher), key=lambda token: float(logits[token]))


def scores_after(ids: list[int], model: Any = None) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax((model or policy())(torch.tensor([ids])).logits[0, -1].float(), -1)


def legal(matcher: Any) -> list[int]:
    """By trying every token."""
    found = []
    for token in range(len(tokenizer())):
        fork = matcher.fork()
        if fork.try_accept(token) is not None:
            found.append(token)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_samples_are_legal_and_drawn_among_the_legal(seed: int) -> None:
    torch.manual_seed(seed)
    made = generate(
        GrammarLogitsProcessor(CALLS),
        PROMPTS,
        random_model(),
        do_sample=True,
        num_return_sequences=5,
        top_k=0,
        top_p=0.95,
    )
    assert len(made.answers) == 15 and len(set(made.answers)) > 5
    assert all(CALLS.accepts(text) for text in made.answers)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}], ids=str)
def test_each_prompt_has_its_own_grammar(options: dict[str, Any]) -> None:
    grammars = [
        *(
            CallGrammar([tool], tokenizer(), format="json-list", max_calls=1, allow_no_call=False)
            for tool in (SWITCH, SWAP)
        ),
        VALUE,
    ]
    torch.manual_seed(3)
    made = generate(GrammarLogitsProcessor(grammars), ["Light"] * 3, random_model(), **options)
    rows = len(made.answers) // 3
    for i, text in enumerate(made.answers):
        assert [grammar.accepts(text) for grammar in grammars] == [j == i // rows for j in range(3)]


def test_rows_of_a_batch_are_as_alone() -> None:
    together = generate(GrammarLogitsProcessor(CALLS), PROMPTS, num_beams=2).answers
    assert together == [generate(GrammarLogitsProcessor(CALLS), [p], num_beams=2).answers[0] for p in PROMPTS]


def beams(grammar: CallGrammar, prompt: list[int], width: int) -> list[tuple[float, str]]:
    """Beam search by the book: after each token the likeliest prefixes go on; what ends among them is an answer.

    It goes on until no prefix can lead to a better answer than those that there are.
    """
    running, ended = [(0.0, grammar.matcher())], []
    while running and (len(ended) < width or running[0][0] > sorted(ended, reverse=True)[width - 1][0]):
        candidates = []
        for score, matcher in running:
            scores = scores_after([*prompt, *matcher.tokens])
            for token in legal(matcher):
                fork = matcher.fork()
                fork.accept(token)
                candidates.append((score + float(scores[token]), fork))
        candidates.sort(key=lambda pair: -pair[0])
        ended += [(score, matcher.text) for score, matcher in candidates[:width] if matcher.is_stopped]
        running = [pair for pair in candidates[: 2 * width] if not pair[1].is_stopped][:width]
    return sorted(ended, reverse=True)[:width]


@pytest.mark.parametrize("grammar", [SMALL, VALUE], ids=["values", "objects"])
@pytest.mark.parametrize("width", [2, 3, 8])
def test_beams_are_those_of_a_beam_search_by_the_book(grammar: CallGrammar, width: int) -> None:
    made = generate(
        GrammarLogitsProcessor(grammar), PROMPTS[:1], num_beams=width, num_return_sequences=width,
        length_penalty=0.0, early_stopping="never",
    )  # fmt: skip
    expected = beams(grammar, tokenizer()(PROMPTS[0]).input_ids, width)
    found = [
        (score, text) for score, text in zip(made.sequences_scores.tolist(), made.answers, strict=True) if score > -1e6
    ]
    assert [text for _, text in found] == [text for _, text in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-3)


def test_more_beams_than_answers_find_all_answers() -> None:
    """All of a language: the sum over it, by enumeration. What fills up lies far below."""
    made = generate(
        GrammarLogitsProcessor(SMALL), PROMPTS[:2], num_beams=24, num_return_sequences=24, length_penalty=0.0,
        early_stopping="never",
    )  # fmt: skip
    for prompt in range(2):
        rows = range(24 * prompt, 24 * prompt + 24)
        found = [made.answers[i] for i in rows if made.sequences_scores[i] > -1e6]
        expected = beams(SMALL, tokenizer()(PROMPTS[prompt]).input_ids, 24)
        assert found == [text for _, text in expected] and set(found) >= {'"a"', '"ab"', "12", "null", '["a"]'}


def test_beams_may_be_sampled() -> None:
    torch.manual_seed(0)
    made = generate(GrammarLogitsProcessor(VALUE), PROMPTS, num_beams=4, do_sample=True, num_return_sequences=2)
    assert all(VALUE.accepts(text) for text in made.answers)


@pytest.mark.parametrize(
    "options", [{"prompt_lookup_num_tokens": 4}, {"assistant_model": random_model(5)}], ids=["lookup", "model"]
)
def test_drafts_change_nothing(options: dict[str, Any]) -> None:
    expected = generate(GrammarLogitsProcessor(CALLS), PROMPTS[:1]).answers
    assert generate(GrammarLogitsProcessor(CALLS), PROMPTS[:1], **options).answers == expected


def test_a_processor_serves_one_generation_after_another() -> None:
    processor = GrammarLogitsProcessor(CALLS)
    longer = PROMPTS[1] + " and more"
    for prompts in ([PROMPTS[0]], [PROMPTS[1]], [longer], PROMPTS, PROMPTS, [PROMPTS[1]]):
        assert generate(processor, prompts).answers == generate(GrammarLogitsProcessor(CALLS), prompts).answers


def test_a_prompt_that_goes_on_from_another_is_a_prompt() -> None:
    """By one token, which is what an answer would also do."""
    processor, ids = GrammarLogitsProcessor(CALLS), inputs(PROMPTS[:1])["input_ids"]
    for length in (3, 4, 5):
        made = policy().generate(
            ids[:, :length], attention_mask=torch.ones(1, length), logits_processor=[processor], max_new_tokens=160,
            do_sample=False, pad_token_id=END,
        )  # fmt: skip
        assert CALLS.accepts(answer(made[0, length:].tolist()))


def test_an_answer_that_can_only_end_does() -> None:
    made = generate(GrammarLogitsProcessor(SMALL), PROMPTS, min_new_tokens=60)
    assert all(SMALL.accepts(text) for text in made.answers)


def test_states_are_bounded() -> None:
    text = CallGrammar.for_schema({"type": "array", "items": {"type": "integer"}, "minItems": 150}, tokenizer())
    processor = GrammarLogitsProcessor(text)
    made = policy().generate(
        **inputs(PROMPTS), logits_processor=[processor], max_new_tokens=300, do_sample=False, pad_token_id=END
    )
    assert made.shape[1] > 300 and len(processor._states) <= 128 * len(PROMPTS)


def test_a_wider_head_is_fine_and_a_narrower_one_is_refused() -> None:
    size = len(tokenizer())
    ids = torch.tensor([tokenizer()("Oslo").input_ids])
    wide = GrammarLogitsProcessor(CALLS)(ids, torch.zeros(1, size + 77))
    assert not torch.isneginf(wide[:, :size]).all() and torch.isneginf(wide[:, size:]).all()
    with pytest.raises(
        ModelNotSupported, match=f"logits for {size - 1} tokens, and the grammar's tokenizer has {size}"
    ):
        GrammarLogitsProcessor(CALLS)(ids, torch.zeros(1, size - 1))


def test_scores_keep_their_type_and_values() -> None:
    ids = torch.tensor([tokenizer()("Oslo").input_ids])
    given = torch.randn(1, len(tokenizer()), dtype=torch.bfloat16)
    before = given.clone()
    made = GrammarLogitsProcessor(CALLS)(ids, given)
    allowed = legal(CALLS.matcher())
    assert made.dtype == torch.bfloat16 and torch.equal(given, before)
    assert torch.equal(made[:, allowed], given[:, allowed])
    assert (~torch.isneginf(made)).nonzero()[:, 1].tolist() == allowed


def test_wrong_use_is_refused() -> None:
    with pytest.raises(RequestError, match="no grammar"):
        GrammarLogitsProcessor([])
    with pytest.raises(RequestError, match="3 rows cannot be shared out among 2 grammars"):
        generate(GrammarLogitsProcessor([CALLS, SMALL]), PROMPTS)
    with pytest.raises(RequestError, match="forbid every legal token"):
        generate(GrammarLogitsProcessor(CALLS), PROMPTS, suppress_tokens=legal(CALLS.matcher()))


def test_another_thread_is_refused() -> None:
    processor, said = GrammarLogitsProcessor(CALLS), []
    generate(processor, PROMPTS[:1])

    def other() -> None:
        with pytest.raises(RequestError, match="one thread"):
            generate(processor, PROMPTS[:1])
        said.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert said


def test_scores_of_what_is_illegal_are_minus_infinity() -> None:
    made = generate(GrammarLogitsProcessor(CALLS), PROMPTS[:1])
    assert all(math.isinf(float(scores[0].min())) and math.isfinite(float(scores[0].max())) for scores in made.scores)
