"""A causal language model as a process reward model: it reads steps, each followed by a tag, and judges at the tag.

The scheme is that of ToolPRM (arXiv 2510.14703): the sequence is ``prompt, step text, tag, step text, tag, ...``, and
the score of a step is the probability of the plus label against the minus label as the token after the step's tag.
"""

from __future__ import annotations

import copy
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolprm_decode.engine.engine import Engine, load_model, load_tokenizer
from toolprm_decode.errors import RequestError, TokenizerError
from toolprm_decode.formats import Format, get_format
from toolprm_decode.prompting import render, to_messages
from toolprm_decode.tools import read_tools

STEP_KINDS = ("FUNC_NAME", "ARG_VALUE", "PARAM_FINISH", "FUNC_FINISH", "TOTAL_FINISH")
DEFAULT_TAGS: Mapping[str, str] = MappingProxyType({kind: f"<{kind}>" for kind in STEP_KINDS})

# Step texts whose ids are kept: a search asks for the same ones again and again.
_CACHED_TEXTS = 1 << 16


class ToolPRM:
    """A causal language model with label tags.

    Args:
        model: a causal language model of transformers, or an Engine that runs one; the policy's will do.
        tokenizer: its tokenizer; None for the engine's.
        tags: the tag of each step kind that the model judges; None for those recorded in the model's configuration,
            else for one tag per step kind. A tag is one special token of the tokenizer or, for a plain model, any text.
            Steps of a kind without a tag are read but not judged.
        plus, minus: the labels; each must be one token. None for those recorded in the configuration, else "+", "-".
        temperature: divides the difference of the labels' logits before it becomes a score. None for the one recorded
            in the configuration, else 1.

    Raises:
        ModelNotSupported: the engine cannot run the model.
        TokenizerError: a label is not one token, or the tokenizer lacks a tag that the configuration records.
        RequestError: an unknown step kind, no tags at all, equal labels, or a temperature that is not above zero.

    Attributes:
        engine: runs the model. tokenizer: its tokenizer.
        tags: step kind to tag text. label_ids: (plus, minus) token ids. temperature: of the scores.
    """

    temperature: float = 1.0

    def __init__(
        self,
        model: PreTrainedModel | Engine,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        tags: Mapping[str, str] | None = None,
        plus: str | None = None,
        minus: str | None = None,
        temperature: float | None = None,
    ):
        if isinstance(tokenizer, (str, Path)):
            tokenizer = load_tokenizer(tokenizer)
        if tokenizer is None and isinstance(model, Engine):
            tokenizer = model.tokenizer
        if tokenizer is None:
            raise TokenizerError("a reward model needs its tokenizer: pass it as `tokenizer`")
        self.tokenizer = tokenizer
        self._plain: PreTrainedTokenizerBase | None = None
        self._marked = [token for token in tokenizer.get_added_vocab() if token]
        self._texts: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._guard = threading.Lock()

        record = getattr((model.model if isinstance(model, Engine) else model).config, "toolprm", None) or {}
        if not isinstance(record, Mapping):
            raise RequestError("config.toolprm is not an object with tags, plus and minus")
        recorded = record.get("tags") if tags is None else None
        given = dict(tags if tags is not None else recorded or DEFAULT_TAGS)
        self.plus: str = record.get("plus", "+") if plus is None else plus
        self.minus: str = record.get("minus", "-") if minus is None else minus
        self.temperature = _checked_temperature(record.get("temperature", 1.0) if temperature is None else temperature)
        unknown = sorted(set(given) - set(STEP_KINDS))
        if unknown or not given:
            known = ", ".join(STEP_KINDS)
            raise RequestError(f"unknown step kind {unknown[0]!r}; known: {known}" if unknown else "no tags were given")
        self.tags: Mapping[str, str] = MappingProxyType({kind: given[kind] for kind in STEP_KINDS if kind in given})
        self._tag_ids = {kind: self._encode_tag(kind, tag) for kind, tag in self.tags.items()}
        if recorded:
            self._check_record(record.get("tag_ids") or {})
        self.label_ids: tuple[int, int] = (self._label_id(self.plus), self._label_id(self.minus))
        if self.label_ids[0] == self.label_ids[1]:
            raise RequestError(f"the labels {self.plus!r} and {self.minus!r} are the same token")
        self.engine = model if isinstance(model, Engine) else Engine(model, tokenizer)
        self.engine.check_head(len(tokenizer))

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        tags: Mapping[str, str] | None = None,
        plus: str | None = None,
        minus: str | None = None,
        temperature: float | None = None,
        **kwargs: Any,
    ) -> ToolPRM:
        """Load a model folder or hub id; arguments as for `Engine.from_pretrained` and the constructor."""
        model = load_model(path_or_id, device=device, dtype=dtype, **kwargs)
        return cls(model, load_tokenizer(path_or_id), tags, plus, minus, temperature)

    def save_pretrained(self, path: str | Path, **kwargs: Any) -> None:
        """Write an ordinary transformers folder, the tags and labels recorded in its config.json under "toolprm"."""
        with self._recorded():
            self.engine.model.save_pretrained(str(path), **kwargs)
        self.tokenizer.save_pretrained(str(path))

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> None:
        """Upload what `save_pretrained` writes; keywords as for transformers' ``push_to_hub``."""
        model: Any = self.engine.model
        with self._recorded():
            model.push_to_hub(repo_id, **kwargs)
        self.tokenizer.push_to_hub(repo_id, **kwargs)

    def prompt_text(self, tools: Any, prompt: Any, format: str | Format = "auto") -> str:
        """The text that comes before the steps, in training and in search alike: by the model's own chat template.

        Args:
            tools, prompt: as for `Decoder.decode`.
            format: how the policy writes calls.

        Raises ToolSchemaError, FormatError, or RequestError for a prompt that cannot be used.
        """
        form = get_format(format, getattr(self.tokenizer, "chat_template", None))
        return render(self.tokenizer, read_tools(tools), to_messages(prompt), form)[0]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a prompt: special tokens that it spells are read as such, and the tokenizer's own are put before it.

        A begin-of-sequence token that the text already spells (as chat templates do) is not put twice, and an end of
        sequence that the tokenizer would add is left out, since the steps go on from here.
        """
        bos, eos = self.tokenizer.bos_token, self.tokenizer.eos_token
        spelled = isinstance(bos, str) and text.startswith(bos)
        ids = list(self.tokenizer(text, add_special_tokens=not spelled)["input_ids"])
        if isinstance(eos, str) and ids[-1:] == [self.tokenizer.eos_token_id] and not text.endswith(eos):
            ids.pop()
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Ids of a step's text on its own: no special tokens are added, and none that it spells is read as one."""
        with self._guard:
            if text in self._texts:
                self._texts.move_to_end(text)
                return list(self._texts[text])
        if any(token in text for token in self._marked):
            ids = self._encode_literally(text)
        else:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        with self._guard:
            self._texts[text] = tuple(ids)
            while len(self._texts) > _CACHED_TEXTS:
                self._texts.popitem(last=False)
        return list(ids)

    def tag_ids(self, kind: str) -> list[int]:
        """Ids of the tag of a step kind. Raises RequestError where the model has none."""
        try:
            return list(self._tag_ids[kind])
        except KeyError:
            raise RequestError(f"this reward model has no tag for {kind!r}; it has {', '.join(self.tags)}") from None

    def scores(self, logits: torch.Tensor | np.ndarray) -> np.ndarray:
        """Scores [L] in 0..1, float64, of the logits [L, 2] of (plus, minus)."""
        values = np.asarray(logits.detach().cpu() if isinstance(logits, torch.Tensor) else logits, np.float64)
        margin = (values[:, 0] - values[:, 1]) / self.temperature
        return np.exp(-np.logaddexp(0.0, -margin))

    def score(self, prompt: str, steps: Sequence[tuple[str, str]]) -> list[float]:
        """Score the steps of one answer from scratch.

        Args:
            prompt: as for `encode_prompt`.
            steps: (kind, text) in order.

        Returns:
            One score a step, nan where the model has no tag of its kind.
        """
        tokens, outputs, judged = self.encode_prompt(prompt), [], []
        for index, (kind, text) in enumerate(steps):
            if kind not in STEP_KINDS:
                raise RequestError(f"unknown step kind {kind!r}; known: {', '.join(STEP_KINDS)}")
            tokens += self.encode_text(text)
            if kind in self._tag_ids:
                tokens += self._tag_ids[kind]
                outputs.append(len(tokens) - 1)
                judged.append(index)
        result = [float("nan")] * len(steps)
        if outputs:
            found = self.scores(self.engine.logits(tokens, outputs, self.label_ids))
            for index, value in zip(judged, found.tolist(), strict=True):
                result[index] = value
        return result

    @property
    def record(self) -> dict[str, Any]:
        """What `save_pretrained` puts into config.json."""
        return {
            "tags": dict(self.tags),
            "tag_ids": {kind: list(ids) for kind, ids in self._tag_ids.items()},
            "plus": self.plus,
            "minus": self.minus,
            "temperature": self.temperature,
        }

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        config = self.engine.model.config
        missing = object()
        before = getattr(config, "toolprm", missing)
        config.toolprm = self.record
        try:
            yield
        finally:
            if before is missing:
                del config.toolprm
            else:
                config.toolprm = before

    def _encode_literally(self, text: str) -> list[int]:
        with self._guard:
            if self._plain is None:
                # The setting lives in the tokenizer's shared backend, so the user's own object is left out of it.
                self._plain = copy.deepcopy(self.tokenizer)
            return list(self._plain(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _encode_tag(self, kind: str, tag: str) -> tuple[int, ...]:
        ids = tuple(self.tokenizer(tag, add_special_tokens=False)["input_ids"])
        if not ids:
            raise TokenizerError(f"the tag {tag!r} of {kind} has no tokens: give it a text the tokenizer can write")
        return ids

    def _check_record(self, tag_ids: Mapping[str, Sequence[int]]) -> None:
        """A trained model knows its tags by their ids: a tokenizer that writes them otherwise is not its own."""
        for kind, ids in self._tag_ids.items():
            expected = tag_ids.get(kind)
            if tuple(expected) != ids if expected is not None else len(ids) != 1:
                wanted = (
                    f"id {expected[0]}"
                    if expected and len(expected) == 1
                    else (f"ids {list(expected)}" if expected else "one token")
                )
                raise TokenizerError(
                    f"the model's configuration records {self.tags[kind]!r} as the tag of {kind} ({wanted}), but the "
                    f"tokenizer reads it as ids {list(ids)}: use the tokenizer that was saved with the model"
                )

    def _label_id(self, label: str) -> int:
        ids = self.tokenizer(label, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise TokenizerError(
                f"the label {label!r} is {len(ids)} tokens for this tokenizer: choose labels of one token each, or add "
                f"it with tokenizer.add_tokens([{label!r}]) and model.resize_token_embeddings(len(tokenizer))"
            )
        return int(ids[0])


def _checked_temperature(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise RequestError(f"the temperature of a reward model must be a number above zero, not {value!r}")
    return float(value)
