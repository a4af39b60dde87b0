"""Decides whether a model can be run by our attention, and refuses by name, with the reason, where it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from toolprm_decode.engine.batch import Batch
from toolprm_decode.engine.runner import ModelRunner
from toolprm_decode.engine.store import KVStore
from toolprm_decode.errors import ModelNotSupported

_TRACE = "toolprm_trace"
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_PROBE_LENGTH = 9


def refusal(model: PreTrainedModel, reason: str) -> ModelNotSupported:
    """The error that names the architecture and the reason."""
    return ModelNotSupported(
        f"{type(model).__name__} (model type {model.config.model_type!r}) is not supported: {reason}"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for an error that quotes it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def check_structure(model: object) -> None:
    """Refuse what the configuration already shows to be out of reach. Raises ModelNotSupported."""
    if not isinstance(model, PreTrainedModel):
        hint = (
            "pass get_base_model() or merge_and_unload() of it"
            if hasattr(model, "get_base_model")
            else ("load it with transformers.AutoModelForCausalLM")
        )
        raise ModelNotSupported(f"{type(model).__name__} is not a transformers PreTrainedModel: {hint}")
    if model.config.is_encoder_decoder:
        raise refusal(model, "it is an encoder-decoder; use a decoder-only causal language model")
    if model.get_output_embeddings() is None:
        raise refusal(model, "it has no causal language-model head; load it with transformers.AutoModelForCausalLM")
    foreign = sorted(set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()) - _LAYER_TYPES)
    if foreign:
        raise refusal(
            model,
            f"its layers of type {', '.join(foreign)} keep a state or a choice of keys that forked rows cannot share "
            "yet; use a model with full or sliding-window attention in every layer",
        )


def position_limit(runner: ModelRunner) -> tuple[int, str] | None:
    """Positions a pass may use, and why; None where nothing but quality bounds them."""
    config = runner.text_config
    most = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        return None if most is None else (int(most), "it has that many position embeddings")
    limits = []
    for parameters in [rope, *(part for part in rope.values() if isinstance(part, dict))]:
        kind = parameters.get("rope_type")
        if kind in ("dynamic", "longrope"):
            limits.append(int(parameters.get("original_max_position_embeddings") or most or 0))
    if not limits:
        return None
    return min(limits), "beyond it its rotary frequencies change with the length, and keys kept before no longer fit"


def probe_tokens(runner: ModelRunner, count: int) -> list[int]:
    """`count` ordinary token ids, the same each time."""
    high = max(2, min(1000, runner.vocab_size))
    return np.random.default_rng(0).integers(min(3, high - 1), high, count).tolist()


def check_attention(runner: ModelRunner) -> None:
    """Refuse a model whose layers do not all attend through transformers' interface, causally, as our passes do.

    One forward pass with a tracing attention counts the layers and asks the mask that the model would have used, at any
    distance, whether it is causal with exactly the sliding window that the layer passes on. Raises ModelNotSupported.
    """
    model, trace = runner.model, _Trace()
    tokens = probe_tokens(runner, 3)
    ids = torch.tensor([tokens], device=runner.device)
    at = torch.arange(len(tokens), device=runner.device)[None]
    try:
        with runner.switched(_TRACE):
            model(input_ids=ids, position_ids=at, use_cache=False, toolprm=trace)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise refusal(
            model, f"it does not run under another attention ({first_line(error)}); {_ALTERNATIVE}"
        ) from error
    layers = int(getattr(runner.text_config, "num_hidden_layers", 0))
    if not trace.layers:
        raise refusal(model, f"its layers do not go through transformers' attention interface; {_ALTERNATIVE}")
    if trace.problems:
        raise refusal(model, f"{trace.problems[0]}; {_ALTERNATIVE}")
    attending = set(trace.layers)
    if len(attending) < layers:
        raise refusal(
            model,
            f"only {len(attending)} of its {layers} layers attend through transformers' attention interface, so what "
            f"the others remember would be lost; {_ALTERNATIVE}",
        )
    if len(attending) < len(trace.layers):
        raise refusal(model, f"a layer of it attends more than once in a pass; {_ALTERNATIVE}")


_ALTERNATIVE = "use a causal model such as Llama, Qwen, Mistral, Gemma or Phi"


class _Trace:
    """What the layers of one forward pass asked of their attention."""

    def __init__(self) -> None:
        self.layers: list[int | None] = []
        self.problems: list[str] = []

    def record(
        self, module: torch.nn.Module, mask: torch.Tensor | None, window: int | None, options: dict[str, Any]
    ) -> None:
        layer = getattr(module, "layer_idx", None)
        self.layers.append(layer)
        if layer is None:
            self.problems.append("its attention layers do not know their index")
        if options.get("position_bias") is not None:
            self.problems.append("its attention adds a position bias")
        if options.get("is_causal") is False:
            self.problems.append("its attention is not causal")
        visible = getattr(mask, "toolprm_visible", None)
        if visible is not None and not _matches(visible, window or None):
            limit = "no sliding window" if not window else f"a sliding window of {window}"
            self.problems.append(f"layer {layer} passes on {limit}, but its mask is another one")


def _matches(visible: Any, window: int | None) -> bool:
    """Whether the mask function `visible(batch, head, query, key)` is causal with this window, far out too."""
    reach = window or 1 << 20
    queries, keys = [], []
    for query in {0, 1, 2, reach - 1, reach, reach + 1, 2 * reach + 3, 1 << 21}:
        for key in {0, 1, query - reach - 1, query - reach, query - reach + 1, query // 2, query - 1, query, query + 1}:
            if key >= 0:
                queries.append(query)
                keys.append(key)
    q, k = torch.tensor(queries), torch.tensor(keys)
    expected = (k <= q) & (q - k < window) if window else k <= q
    zero = torch.zeros((), dtype=torch.long)
    try:
        actual = visible(zero, zero, q, k)
    except (IndexError, RuntimeError):
        return True  # it looks into tables of the traced pass: only the comparison of whole passes can tell
    return bool((torch.as_tensor(actual).cpu() == expected).all())


def _trace_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sliding_window: int | None = None,
    toolprm: _Trace | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if toolprm is not None:
        toolprm.record(module, attention_mask, sliding_window, options)
    batch, heads, count, _ = query.shape
    return value.new_zeros(batch, count, heads, value.shape[-1]), None


def _trace_mask(
    *_: Any, mask_function: Any = None, q_length: int = 0, kv_length: int = 0, device: Any = None, **__: Any
) -> torch.Tensor:
    mask = torch.zeros(1, 1, int(q_length), int(kv_length), device=device)
    mask.toolprm_visible = mask_function  # type: ignore[attr-defined]
    return mask


AttentionInterface.register(_TRACE, _trace_attention)
AttentionMaskInterface.register(_TRACE, _trace_mask)


def check_forks(runner: ModelRunner) -> int:
    """Compare a small forked case with the model's own forward; return the bytes of a token's keys and values.

    Raises ModelNotSupported where they differ.
    """
    tokens = probe_tokens(runner, 4 * _PROBE_LENGTH)
    store = KVStore(block_size=4)
    try:
        cases = _forked_logits(runner, store, tokens)
    except ModelNotSupported as error:
        raise refusal(runner.model, str(error)) from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise refusal(
            runner.model, f"it does not run under our attention ({first_line(error)}); {_ALTERNATIVE}"
        ) from error
    for sequence, ours in cases:
        own = runner.own_logits(sequence)[-1]
        ours = ours.to(own.device)
        if runner.model.dtype in (torch.float32, torch.float64):
            difference, bound = (ours - own).abs().max().item(), runner.tolerance(own)
        else:
            # Rounding may send a token to another expert, which moves single logits far: compare them all together.
            difference, bound = ((ours - own).norm() / (own - own.mean()).norm().clamp_min(1e-6)).item(), 0.2
        if not difference <= bound:
            raise refusal(
                runner.model,
                f"forked rows differ from its own forward pass by {difference:.2g} (allowed {bound:.2g}), so a layer "
                f"keeps something that our attention does not see; {_ALTERNATIVE}",
            )
    return store.bytes_per_slot


def _forked_logits(runner: ModelRunner, store: KVStore, tokens: list[int]) -> list[tuple[list[int], torch.Tensor]]:
    """Four rows behind two prompts, one of them forked from another by a block copy: (whole sequence, last logits).

    The first prompt is read in two parts; the second shares three tokens with it, and lies in two segments.
    """
    prompts = [tokens[:5], tokens[:3] + tokens[5:7]]
    rows = [tokens[7:10], tokens[10:11], tokens[11:13]]
    one, two = [(4, 3), (7, 2)], [(4, 3), (12, 2)]
    last = [(0, 13), (1, 14), (2, 15), (0, 16)]
    ours: list[torch.Tensor] = []
    for batch in (
        _batch([(prompts[0][:3], 0, [], [4, 5, 6])]),
        # What the first row reads here, the second one's rows read in the same pass.
        _batch(
            [
                (prompts[0][3:], 3, one[:1], [7, 8]),
                (prompts[1][3:], 3, two[:1], [12, 13]),
                (rows[0], 5, one, [16, 17, 18]),
                (rows[1], 5, one, [20]),
                (rows[2], 5, two, [24, 25]),
            ],
            outputs=[6],
            tables=[[], [], [4], [5], [6]],
            blocks=7,
        ),
        _batch(
            [
                ([tokens[13]], 8, one, [19]),
                ([tokens[14]], 6, one, [21]),
                ([tokens[15]], 7, two, [26]),
                ([tokens[16]], 8, one, [31]),
            ],
            outputs=[0, 1, 2, 3],
            tables=[[4], [5], [6], [7]],
            lengths=[4, 2, 3, 4],
            copies=[(16, 28, 3)],
            blocks=8,
        ),
    ):
        ours += runner.run(store, batch)[0]
    sequences = [[*prompts[0], *rows[0]]]
    sequences += [[*prompts[1 if row == 2 else 0], *rows[row], tokens[at]] for row, at in last]
    return list(zip(sequences, ours, strict=True))


def _batch(
    rows: list[tuple[list[int], int, list[tuple[int, int]], list[int]]],
    outputs: list[int] | None = None,
    tables: list[list[int]] | None = None,
    lengths: list[int] | None = None,
    copies: list[tuple[int, int, int]] | None = None,
    blocks: int = 4,
) -> Batch:
    """rows: tokens, first position, segments of the context, slots."""
    segments = sorted({segment for *_, context, _ in rows for segment in context})
    tables = tables or [[] for _ in rows]

    def padded(lists: list[list[int]]) -> np.ndarray:
        out = np.full((len(lists), max(map(len, lists))), -1, np.int32)
        for row, values in enumerate(lists):
            out[row, : len(values)] = values
        return out

    none = np.zeros(0, np.int32)
    return Batch(
        tokens=np.array([t for tokens, *_ in rows for t in tokens], np.int32),
        positions=np.array([at + i for tokens, at, *_ in rows for i in range(len(tokens))], np.int32),
        rows=np.array([r for r, (tokens, *_) in enumerate(rows) for _ in tokens], np.int32),
        slots=np.array([s for *_, slots in rows for s in slots], np.int32),
        segments=np.array(segments, np.int32).reshape(-1, 2),
        contexts=padded([[segments.index(s) for s in context] for *_, context, _ in rows]),
        block_tables=padded(tables),
        lengths=np.array(lengths or [len(tokens) for tokens, *_ in rows], np.int32),
        outputs=np.array(outputs or [], np.int32),
        few_outputs=none,
        few_ids=none,
        copies=np.array(copies or [], np.int32).reshape(-1, 3),
        blocks=blocks,
    )
