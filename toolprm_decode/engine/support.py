"""Decides whether a model can be run by our attention, and refuses by name, with the reason, where it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from toolprm_decode.engine.attention import Batch, DecodePass, KVStore, PrefillPass, Prefix
from toolprm_decode.engine.runner import ModelRunner
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


def check_forks(runner: ModelRunner) -> None:
    """Compare a small forked case with the model's own forward. Raises ModelNotSupported where they differ."""
    tokens = probe_tokens(runner, 4 * _PROBE_LENGTH)
    try:
        cases = _forked_logits(runner, tokens)
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


def _forked_logits(runner: ModelRunner, tokens: list[int]) -> list[tuple[list[int], torch.Tensor]]:
    """Four rows over two prefixes, one of them forked from another by a block copy: (whole sequence, last logits)."""
    store = KVStore(block_size=4)
    prefixes = [tokens[:5], tokens[5:7]]
    for index, prefix in enumerate(prefixes):
        store.prefixes[index] = Prefix(len(prefix))
        for start in range(0, len(prefix), 3):
            part = prefix[start : start + 3]
            context = PrefillPass(store.prefixes[index], start, len(part))
            runner.run(part, np.arange(start, start + len(part)), context)
    rows = [tokens[7:10], tokens[10:11], tokens[11:13]]
    of = np.array([0, 0, 1], np.int32)
    held = np.array([5, 5, 2])
    counts = np.array([len(row) for row in rows])
    place = np.concatenate([np.arange(n) for n in counts])
    row = np.repeat(np.arange(3), counts)
    ours = [
        Batch(
            tokens=np.concatenate(rows),
            positions=held[row] + place,
            rows=row,
            slots=row * 4 + place,
            prefixes=of,
            block_tables=np.array([[0], [1], [2]], np.int32),
            lengths=counts,
            outputs=np.array([2]),
            copies=np.zeros((0, 3), np.int32),
            blocks=3,
        ),
        Batch(
            tokens=np.array(tokens[13:17]),
            positions=np.array([8, 6, 4, 8]),
            rows=np.arange(4),
            slots=np.array([3, 5, 10, 15]),
            prefixes=np.array([0, 0, 1, 0], np.int32),
            block_tables=np.array([[0], [1], [2], [3]], np.int32),
            lengths=np.array([4, 2, 3, 4]),
            outputs=np.arange(4),
            copies=np.array([[0, 12, 3]], np.int32),
            blocks=4,
        ),
    ]
    first, second = (runner.run(b.tokens, b.positions, DecodePass(store, b), b.outputs) for b in ours)
    sequences = [
        [*prefixes[p], *rows[r], token] for p, r, token in zip([0, 0, 1, 0], [0, 1, 2, 0], tokens[13:17], strict=True)
    ]
    return [([*prefixes[0], *rows[0]], first[0]), *zip(sequences, second, strict=True)]
