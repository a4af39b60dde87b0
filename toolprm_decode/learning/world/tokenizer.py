"""The tokenizer of the built-in models: a byte-level BPE whose merges are the world's words, and a short template."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from toolprm_decode.learning.world import lexicon
from toolprm_decode.rewards import DEFAULT_TAGS

END = "<|end|>"
_SPECIAL = (END, "<|pad|>", "<|tool|>", "<|user|>", "<|assistant|>", "<|system|>")

# What is cut apart before merging: the literals of a JSON list of calls up to a step boundary, words and pairs of
# digits with the space before them, single marks.
_CUT = (
    r"""\[\{"name": "|, \{"name": "|\{"name": "|, "arguments": \{"?|": "|":|, "|[\[{]"|"""
    r""" ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]|\s+(?!\S)|\s+"""
)

# Tools as short text: `description name`, then a parameter a line as `description name type`, `?` after the type where
# it is optional. The word that a request shares with a description comes right before the name to copy.
_TEMPLATE = r"""
{%- macro type(s) -%}
{%- if s.enum is defined -%}{{ " enum" }}{% for x in s.enum %} {{ x if x is string else x | tojson }}{% endfor %}
{%- elif s.anyOf is defined or s.oneOf is defined or s.allOf is defined -%}
{%- for x in s.anyOf or s.oneOf or s.allOf -%}{{ type(x) }}{%- endfor -%}
{%- elif s.properties -%}{{ " object (" }}{{ members(s) }}{{ " )" }}
{%- elif s["items"] is mapping -%}{{ " list" }}{{ type(s["items"]) }}
{%- elif s.type is string -%} {{ " " + s.type }}
{%- elif s.type -%}{%- for x in s.type -%}{{ " " + x }}{%- endfor -%}
{%- else -%}{{ " any" }}
{%- endif -%}
{%- endmacro -%}
{%- macro members(s) -%}
{%- for name, p in (s.properties or {}).items() -%}
{{ "\n" }}{{ " " + p.description if p is mapping and p.description else "" }}
{{- " " + name }}{{ type(p) if p is mapping else " any" }}{{ "" if name in (s.required or []) else "?" }}
{%- endfor -%}
{%- endmacro -%}
{%- for t in tools or [] -%}
{%- set f = t.function -%}
<|tool|>{{ " " + f.description if f.description else "" }} {{ f.name }}{{ members(f.parameters) }}
{%- endfor -%}
{%- for m in messages -%}
<|{{ m.role if m.role in ("user", "assistant", "system") else "user" }}|>{{ " " + (m.content or "") | trim }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
""".strip()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, made anew; always the same."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = [*_SPECIAL, *DEFAULT_TAGS.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 13,  # more than there are: it stops when every word is one token
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_words(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token="<|pad|>",
        additional_special_tokens=[token for token in special if token not in (END, "<|pad|>")],
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _words() -> Iterator[str]:
    """Every word as it is written, as often as the others."""
    after_space = set(_plain_words())
    anywhere = {*lexicon.CITIES, *lexicon.PEOPLE, *lexicon.THINGS, *lexicon.NAMES, *lexicon.MONTHS, *lexicon.MASKS}
    anywhere |= {slot.name for slot in lexicon.SLOTS.values()} | set(lexicon.ACTIONS)
    for slot in lexicon.SLOTS.values():
        if "|" in slot.values:
            anywhere |= set(slot.values.lstrip("*").split("|"))
    after_space |= anywhere | set(lexicon.OBJECTS)
    numbers = {f"{n}" for n in range(100)} | {f"{n:02d}" for n in range(100)}
    literals = ('[{"name": "', ', {"name": "', '{"name": "', ', "arguments": {"', ', "arguments": {')
    marks = ('": "', '":', ', "', '["', '{"', ' "', " {", " [", " (", " )")
    for text in (
        *(f" {word}" for word in sorted(after_space)),
        *sorted(anywhere | set(lexicon.OBJECTS)),
        *(f" {number}" for number in sorted(numbers)),
        *sorted(numbers),
        *literals,
        *marks,
    ):
        for _ in range(2):
            yield text


def _plain_words() -> Iterator[str]:
    yield from ("true", "false", "string", "integer", "number", "boolean", "enum", "list", "object", "with", "without")
    yield from ("and", "any", "null", "array")
    for action, synonym in lexicon.ACTIONS.items():
        yield from (action, synonym)
    for noun, (synonym, _) in lexicon.OBJECTS.items():
        yield from (noun, synonym)
    for slot in lexicon.SLOTS.values():
        yield from f"{slot.about} {slot.cue} {slot.synonym}".replace("-", " ").split()
    for texts in lexicon.FILLERS.values():
        for text in texts:
            yield from (word for word in text.split() if word.isalpha())
