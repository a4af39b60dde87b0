"""CallGrammar: the texts that are legal calls of a tool set in a format; Matcher: one text on its way through it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from toolprm_decode import _core
from toolprm_decode.errors import BudgetExceeded, FormatError, RequestError, ToolSchemaError
from toolprm_decode.formats import Format, get_format, pick_format
from toolprm_decode.grammar.automata import Impossible
from toolprm_decode.grammar.leniency import SchemaWarning, leaving_out
from toolprm_decode.grammar.members import spellings
from toolprm_decode.grammar.merging import Schema
from toolprm_decode.grammar.schema import SchemaCompiler, Style
from toolprm_decode.grammar.vocabulary import load_tokenizer, vocabulary
from toolprm_decode.machine import usable_cores
from toolprm_decode.tools import Tool, read_tools

MAX_INSTRUCTIONS = 4_000_000


@dataclass(frozen=True)
class Step:
    """One decision of an answer.

    Attributes:
        kind: FUNC_NAME, ARG_VALUE, PARAM_FINISH, FUNC_FINISH or TOTAL_FINISH.
        text: what the step wrote; the texts of all steps lie end to end.
        start, end: byte offsets into the answer's UTF-8 text.
        path: JSON pointer into the list of calls, such as /0/arguments/city; "" for the whole list.
        score: the reward model's score in [0, 1], or None.
        logprob: natural log-probability of the step's tokens under the policy at temperature 1, among the legal
            tokens; None where no policy wrote it.
    """

    kind: str
    text: str
    start: int
    end: int
    path: str
    score: float | None = None
    logprob: float | None = None


def _steps(core: Sequence[_core.Step]) -> list[Step]:
    return [Step(s.kind, s.text, s.start, s.end, s.path) for s in core]


Matcher = _core.Matcher


def fill_masks(matchers: Sequence[Matcher], rows: npt.NDArray[np.int32], *, threads: int | None = None) -> None:
    """Writes the legal tokens of several matchers, those of each as Matcher.fill_mask() does.

    Args:
        rows: int32 [>= len(matchers), >= ceil(vocabulary / 32)], contiguous; row i is that of matcher i.
        threads: how many may work at once, on masks that no matcher in an equal state asked for before; default: the
            cores that this process may use.

    Raises ValueError for rows that do not fit, and what fill_mask() does; then some rows may be written.
    """
    _core.fill_masks(list(matchers), rows, max(1, usable_cores() if threads is None else threads))


class CallGrammar:
    """The legal answers of a tool set in a call format. Immutable; share it between threads and requests.

    Args:
        tools: tools in any dialect that read_tools() takes.
        tokenizer: a fast tokenizer (transformers or tokenizers), its folder or hub id, or a tokenizer.json file.
        format: a format's name, a Format, or "auto" (by the tokenizer's chat template).
        max_calls: most calls of an answer; None: any number.
        allow_no_call: the empty list of calls is legal.
        flexible_whitespace: any white space between the parts, instead of json.dumps' own.
        strict: a keyword that cannot be enforced is an error; otherwise it is left out, and listed in warnings.
        stop_ids: tokens that end an answer; default: the tokenizer's end-of-sequence token.
        max_instructions: compile budget, in instructions of the automaton (about one a byte of literal text).

    Raises:
        ToolSchemaError: a tool is malformed or impossible; UnsupportedSchemaError: it uses a keyword that cannot be
            enforced; both name tool, JSON pointer and keyword.
        FormatError: unknown format, or a name the format cannot write.
        TokenizerError: the bytes of the tokens cannot be recovered.
        BudgetExceeded: the grammar outgrows max_instructions, or a scalar its own budget of states.

    Attributes:
        tools: as read. format: the call format, None for a schema. format_reason: why that one, in words.
        warnings: the keywords that are not enforced; empty where strict.
    """

    def __init__(
        self,
        tools: Any,
        tokenizer: Any,
        format: str | Format = "auto",
        *,
        max_calls: int | None = None,
        allow_no_call: bool = True,
        flexible_whitespace: bool = False,
        strict: bool = True,
        stop_ids: Sequence[int] | None = None,
        max_instructions: int = MAX_INSTRUCTIONS,
    ):
        tokenizer = load_tokenizer(tokenizer)
        self.tools: list[Tool] = read_tools(tools)
        template = _chat_template(tokenizer)
        self.format: Format | None = get_format(format, template)
        self.format_reason = pick_format(template)[1] if format == "auto" else f"{self.format.name} was asked for"
        if max_calls is not None and max_calls < 1:
            raise RequestError(f"max_calls must be 1 or more, not {max_calls}")
        if not self.tools and not allow_no_call:
            raise ToolSchemaError("there is no tool to call: give tools, or allow an answer without calls")
        self._vocabulary = vocabulary(tokenizer, stop_ids)
        compile_ = _CallCompiler(self.format, max_calls, allow_no_call, flexible_whitespace, strict, max_instructions)
        self._grammar = compile_(self.tools)
        self.warnings: list[SchemaWarning] = compile_.warnings

    @classmethod
    def for_schema(
        cls,
        schema: Schema,
        tokenizer: Any,
        *,
        flexible_whitespace: bool = False,
        strict: bool = True,
        stop_ids: Sequence[int] | None = None,
        max_instructions: int = MAX_INSTRUCTIONS,
    ) -> CallGrammar:
        """The grammar of one JSON value instead of calls, by JSON Schema's own rules for additional properties.

        A member of an object at the root is an ARG_VALUE step, the end of the value TOTAL_FINISH; paths point into
        the value.
        """
        self = cls.__new__(cls)
        self.tools, self.format, self.format_reason = [], None, "one JSON value"
        self._vocabulary = vocabulary(load_tokenizer(tokenizer), stop_ids)
        builder = _core.GrammarBuilder(max_instructions)
        self.warnings = []

        def read(root: Schema) -> int:
            return SchemaCompiler(builder, root, flexible=flexible_whitespace).value(root, arguments=True)

        def build() -> _core.Grammar:
            if strict:
                value = read(schema)
            else:
                value, self.warnings = leaving_out(read, schema)
            space = [builder.space()] if flexible_whitespace else []
            finish = builder.step(_core.StepKind.TOTAL_FINISH)
            return builder.build(builder.sequence([*space, value, *space, builder.stop(), finish]), calls=False)

        self._grammar = _translate(build, None)
        return self

    def matcher(self) -> Matcher:
        """A matcher at the start of an answer."""
        return _core.Matcher(self._grammar, self._vocabulary)

    def accepts(self, text: str | bytes) -> bool:
        """Whether the whole text is a legal answer. Raises RequestError for invalid UTF-8."""
        matcher = _core.Matcher(self._grammar, self._vocabulary)
        return matcher.accept_bytes(_utf8(text)) is not None and bool(matcher.is_complete)

    def steps(self, text: str | bytes) -> list[Step]:
        """The steps of a legal answer. Raises FormatError, with the byte where it leaves the grammar."""
        matcher = _core.Matcher(self._grammar, self._vocabulary)
        data = _utf8(text)
        steps = matcher.accept_bytes(data)
        if steps is None:
            at = next(i for i in range(len(data)) if matcher.accept_bytes(data[i : i + 1]) is None)
            raise FormatError(f"not a legal answer: byte {at}, {data[at : at + 20]!r}, after {data[:at][-40:]!r}")
        last = matcher.finish()
        if last is None:
            raise FormatError(f"not a legal answer: it ends early, after {data[-40:]!r}")
        return _steps([*steps, *last])

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer."""
        return self._vocabulary.stop_ids

    def serialize(self) -> bytes:
        """The grammar as bytes, without the vocabulary: the core's C++ and C interfaces read it in another process
        (docs/sdk.md), where it allows the same texts and ends the same steps.
        """
        return self._grammar.serialize()

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids; a mask row has ceil(vocabulary_size / 32) words."""
        return len(self._vocabulary)


class _CallCompiler:
    """Builds the grammar of a list of calls."""

    def __init__(
        self,
        format: Format,
        max_calls: int | None,
        allow_no_call: bool,
        flexible: bool,
        strict: bool,
        max_instructions: int,
    ):
        self.format, self.flexible, self.strict = format, flexible, strict
        self.warnings: list[SchemaWarning] = []
        self.max_calls, self.allow_no_call, self.max_instructions = max_calls, allow_no_call, max_instructions

    def __call__(self, tools: Sequence[Tool]) -> _core.Grammar:
        try:
            return _translate(partial(self._build, tools), None)
        except ToolSchemaError as error:
            if error.tool is None:  # the core does not know tools: find the one at fault
                for tool in tools:
                    _translate(partial(self._build, [tool]), tool.name)
            raise

    def _build(self, tools: Sequence[Tool]) -> _core.Grammar:
        form, b = self.format, _core.GrammarBuilder(self.max_instructions)
        calls = b.array(
            self._literal(b, form.begin),
            self._literal(b, form.separator),
            self._literal(b, form.list_close),
            [],
            self._call(b, tools) if tools else -1,
            min=0 if self.allow_no_call else 1,
            max=self.max_calls if tools else 0,
        )
        total = b.step(_core.StepKind.TOTAL_FINISH)
        end = [self._literal(b, form.end), *self._space(b), b.stop()]
        return b.build(b.sequence([calls, total, *end] if form.list_close else [calls, *end, total]), calls=True)

    def _call(self, b: _core.GrammarBuilder, tools: Sequence[Tool]) -> int:
        form, kinds = self.format, _core.StepKind
        names: list[tuple[bytes, int]] = []
        nodes: dict[Any, Any] = {}
        finish = b.step(kinds.PARAM_FINISH)
        if form.pythonic:
            # The name ends before the parenthesis; the one that closes the arguments closes the call too.
            before, after = [b.step(kinds.FUNC_NAME, 1)], [finish, b.step(kinds.FUNC_FINISH)]
        else:
            before = [b.step(kinds.FUNC_NAME), self._literal(b, form.arguments_open), *self._space(b)]
            after = [finish, self._literal(b, form.call_close), b.step(kinds.FUNC_FINISH)]
            after += [self._literal(b, form.call_end)]
        for tool in tools:
            read = partial(self._arguments, b, nodes, tool.name)
            if self.strict:
                arguments = read(tool.parameters)
            else:
                arguments, warnings = leaving_out(read, tool.parameters)
                self.warnings += warnings
            written = [f"{tool.name}(".encode()] if form.pythonic else spellings(tool.name)
            node = b.sequence([*before, arguments, *after])
            names += [(text, node) for text in written]
        return b.sequence([self._literal(b, "" if form.pythonic else form.name_open), *self._space(b), b.names(names)])

    def _arguments(self, b: _core.GrammarBuilder, nodes: dict[Any, Any], tool: str, parameters: dict[str, Any]) -> int:
        """The node of a call's arguments."""
        style: Style = "python" if self.format.pythonic else "json"
        compiler = SchemaCompiler(
            b, parameters, tool=tool, style=style, flexible=self.flexible, closed=True, nodes=nodes
        )
        schema = _object_schema(parameters)
        return compiler.keywords(schema) if self.format.pythonic else compiler.value(schema, arguments=True)

    def _literal(self, b: _core.GrammarBuilder, text: str) -> int:
        """A literal of the format; in the flexible mode with any white space before each of its tokens.

        None is allowed after the last one: what follows brings its own, and a step that ends with it ends there.
        """
        if not self.flexible:
            return b.literal(text.encode())
        parts: list[int] = []
        for token in _FORMAT_TOKEN.findall(text):
            parts += [b.space(), b.literal(token.encode())]
        return b.sequence(parts)

    def _space(self, b: _core.GrammarBuilder) -> list[int]:
        return [b.space()] if self.flexible else []


# Quoted names, punctuation of JSON and Python, and whatever else holds together (tags, fences).
_FORMAT_TOKEN = re.compile(r'"[^"]*"|[{}\[\]():,;]|[^\s{}\[\]():,;"]+')


def _object_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """The schema of a call's arguments: an object, closed unless it says otherwise."""
    if "properties" not in parameters and "additionalProperties" not in parameters and "$ref" not in parameters:
        if not {"anyOf", "oneOf", "allOf"} & set(parameters):
            return {**parameters, "properties": {}, "additionalProperties": False}
    if parameters.get("properties") == {} and "additionalProperties" not in parameters:
        return {**parameters, "additionalProperties": False}
    return parameters


def _translate(build: Callable[[], _core.Grammar], tool: str | None) -> _core.Grammar:
    """Errors of the core as errors of the package."""
    try:
        grammar: _core.Grammar = build()
    except _core.BudgetError as error:
        raise BudgetExceeded(f"{error}: use fewer or smaller tools, or raise max_instructions") from error
    except _core.ImpossibleGrammar as error:
        # Nothing else is found so late. A circle says nothing of which values are legal.
        kind = ToolSchemaError if "leads back" in str(error) else Impossible
        raise kind(str(error), tool=tool, keyword="$ref") from error
    except RecursionError:
        raise ToolSchemaError("schemas are nested too deep", tool=tool) from None
    except ValueError as error:
        if isinstance(error, (ToolSchemaError, FormatError)):
            raise
        raise FormatError(str(error)) from error
    return grammar


def _chat_template(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default")
    return template if isinstance(template, str) else None


def _utf8(text: str | bytes) -> bytes:
    try:
        if isinstance(text, str):
            return text.encode()
        text.decode()
        return bytes(text)
    except UnicodeError as error:
        _refuse_text(error)


def _refuse_text(error: UnicodeError) -> NoReturn:
    raise RequestError(f"the text is not valid Unicode: {error}") from error
