"""Runs a transformers model under an attention of our choice, and only the wanted rows of its head.

The model stays the user's: its attention implementation and its training flags are changed for the length of a call
and put back, under a lock that every engine on the same configuration shares.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from toolprm_decode.engine.attention import NAME, Pass
from toolprm_decode.engine.batch import Batch
from toolprm_decode.engine.packing import packed_linears
from toolprm_decode.engine.store import KVStore
from toolprm_decode.engine.torch_pass import TorchPass
from toolprm_decode.errors import RequestError
from toolprm_decode.kernels.dispatch import backend

if TYPE_CHECKING:
    from toolprm_decode.engine.graphs import Graphs, Record


class _Lock:
    """A re-entrant lock that weak references can hold."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


# By id of the configuration: two models may share one, and the attention implementation is read from it. A runner
# holds its configurations, so an id cannot be taken by another object while its lock is alive.
_LOCKS: WeakValueDictionary[int, _Lock] = WeakValueDictionary()
_LOCKS_GUARD = threading.Lock()


def configs_of(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every configuration object that a module of `model` reads, parents before their parts."""
    found: dict[int, PreTrainedConfig] = {}
    queue: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    while queue:
        config = queue.pop(0)
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            queue.extend(getattr(config, name, None) for name in config.sub_configs)
    return list(found.values())


class ModelRunner:
    """A model, its lock, and the way its logits are made.

    Args:
        model: a causal language model of transformers.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.text_config: PreTrainedConfig = model.config.get_text_config(decoder=True)
        self.head: nn.Module = model.get_output_embeddings()
        self.vocab_size = int(getattr(self.head, "out_features", None) or self.text_config.vocab_size)
        self.device: torch.device = model.device
        self._packed = packed_linears(model, self.head)
        self._configs = configs_of(model)
        with _LOCKS_GUARD:
            self._locks = [_LOCKS.setdefault(i, _Lock()) for i in sorted(map(id, self._configs))]
        self._direct = False  # hidden states, then our own reading of the head; else the model's whole forward
        self._keep = False  # the model's forward takes the indices of the wanted positions as logits_to_keep
        self._scale = 1.0
        self._softcap: float | None = None
        # How passes of few tokens are recorded, to be replayed; None for not at all.
        self.record: Record | None = None
        if self.device.type == "cuda" and backend(self.device) == "triton":
            from toolprm_decode.engine.graphs import CudaGraphs

            self.record = CudaGraphs(self.device)
        self._graphs: Graphs | None = None

    def shares_lock(self, other: ModelRunner) -> bool:
        """Whether the passes of both run one after another."""
        return any(lock in other._locks for lock in self._locks)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other engine on this model, or on one that shares its configuration, out."""
        with ExitStack() as stack:
            for lock in self._locks:
                stack.enter_context(lock)
            yield

    @contextmanager
    def switched(self, attention: str | None) -> Iterator[None]:
        """The model in inference mode and evaluation, under `attention` (None: its own), and put back afterwards."""
        with self.locked():
            own = [config._attn_implementation for config in self._configs]
            training = [module for module in self.model.modules() if module.training]
            try:
                for module in training:
                    module.training = False
                if attention is not None:
                    for config in self._configs:
                        config._attn_implementation = attention
                with torch.inference_mode():
                    yield
            finally:
                for module in training:
                    module.training = True
                if attention is not None:
                    for config, name in zip(self._configs, own, strict=True):
                        config._attn_implementation = name

    def run(self, store: KVStore, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One forward pass: float32 logits [L, vocabulary] of its outputs, and [F, U] of its few outputs.

        Raises RequestError where a wanted id is none of the head's.
        """
        few_ids = self._checked(batch.few_ids)
        store.reserve(batch.blocks)
        store.copy(batch.copies)
        outputs = np.concatenate([batch.outputs, batch.few_outputs]).astype(np.int64)
        where = torch.from_numpy(outputs).to(self.device)
        options: dict[str, Any] = {}
        if self._keep and not self._direct:
            options["logits_to_keep"] = where if len(outputs) else where.new_zeros(1)
        result = None
        if self._graphs is not None:
            with torch.inference_mode():
                result = self._graphs.run(store, batch)
        if result is None:
            with self.switched(NAME), self._packed.applied(len(batch.tokens)):
                result = self._run(store, batch, options)
        full, few = torch.empty(0, self.vocab_size), torch.empty(0, len(few_ids))
        if not len(outputs):
            return full, few
        # What is wanted of the result: hidden states to be read by the head, or logits.
        result = result if self._keep and not self._direct else result[where.to(result.device)]
        n_full = len(batch.outputs)
        with torch.no_grad():  # not inference mode: the caller may write into the logits
            if self._direct:
                if n_full:
                    full = self._logits(result[:n_full], None)
                if n_full < len(outputs):
                    few = self._logits(result[n_full:], few_ids)
                return full, few
            return result[:n_full].float().clone(), result[n_full:][:, few_ids.to(result.device)].float()

    def _run(self, store: KVStore, batch: Batch, options: dict[str, Any]) -> torch.Tensor:
        """The pass as it is: hidden states [T, hidden], or what the model makes of them under `options`."""
        ids, at = (torch.from_numpy(of.astype(np.int64)).to(self.device) for of in (batch.tokens, batch.positions))
        computes = backend(self.device)
        if computes == "torch":
            return self._forward(ids, at, TorchPass(store, batch), **options)
        from toolprm_decode.engine.graphs import Graphs
        from toolprm_decode.engine.kernel_pass import KernelPass
        from toolprm_decode.kernels.attention import attend, attend_reference

        context = KernelPass(store, batch, attend if computes == "triton" else attend_reference)
        result = self._forward(ids, at, context, **options)
        if self._direct and self.record and self._graphs is None and len(context.groups) == 1:
            self._graphs = Graphs(self._switched_forward, context.groups.pop(), self.device, self.record)
        return result

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, context: Pass, **options: Any) -> torch.Tensor:
        model: nn.Module = self.model.base_model if self._direct else self.model
        result: torch.Tensor = model(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, toolprm=context, **options
        )[0][0]
        return result

    def _switched_forward(self, ids: torch.Tensor, positions: torch.Tensor, context: Pass) -> torch.Tensor:
        """For graphs: switching takes longer than replaying a pass, and only the recording needs it."""
        with self.switched(NAME):
            return self._forward(ids, positions, context)

    def own_logits(self, tokens: Sequence[int], **options: Any) -> torch.Tensor:
        """The model's own forward over one sequence, with its own attention: float32 [T, vocabulary]."""
        ids = torch.tensor([list(tokens)], device=self.device)
        at = torch.arange(len(tokens), device=self.device)[None]
        with self.switched(None):
            return self.model(input_ids=ids, position_ids=at, use_cache=False, **options).logits[0].float()

    def calibrate(self, tokens: Sequence[int]) -> None:
        """Learn how the model's forward turns hidden states into logits, on a few `tokens`.

        Hidden states times the head, then a scale and a soft cap named in the configuration, are compared with the
        model's own logits twice: as they are, and with the hidden states scaled up, so that a soft cap shows. Where
        nothing fits, the model's own forward stays in use.
        """
        self._direct = self._keep = False
        backbone = self.model.base_model
        if backbone is not self.model:
            scales = [1.0]
            for name, power in (("logit_scale", 1), ("logits_scaling", -1), ("logits_scaling", 1)):
                factor = getattr(self.text_config, name, None)
                if isinstance(factor, (int, float)) and factor:
                    scales.append(float(factor) ** power)
            caps = [None, getattr(self.text_config, "final_logit_softcapping", None)]
            observed = self._observe(tokens, 1.0)
            if observed is not None:
                largest = self._logits(observed[0], None, plain=True).abs().max().item()
                enlarged = self._observe(tokens, 100.0 / max(largest, 1e-6))
                for self._scale, self._softcap in [(scale, cap) for scale in scales for cap in caps]:
                    if enlarged and all(self._agrees(self._logits(h, None), own) for h, own in (observed, enlarged)):
                        self._direct = True
                        return
        self._scale, self._softcap = 1.0, None
        where = torch.tensor([1], device=self.device)
        try:
            kept = self.own_logits(tokens, logits_to_keep=where)
        except (TypeError, ValueError, RuntimeError, IndexError):
            return  # the forward does not know the argument, or only as a count
        self._keep = kept.shape[0] == 1 and self._agrees(kept[0], self.own_logits(tokens)[1])

    def tolerance(self, own: torch.Tensor) -> float:
        """How far logits may lie from the model's `own` and still be the same."""
        relative = 1e-4 if self.model.dtype in (torch.float32, torch.float64) else 2e-2
        return relative * max(1.0, own.abs().max().item())

    def _agrees(self, ours: torch.Tensor, own: torch.Tensor) -> bool:
        return ours.shape == own.shape and (ours.to(own.device) - own).abs().max().item() <= self.tolerance(own)

    def _observe(self, tokens: Sequence[int], factor: float) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Hidden states [T, hidden] times `factor`, and the model's logits made from them; None where unseen."""
        seen: list[torch.Tensor] = []

        def enlarge(_: nn.Module, __: Any, output: Any) -> Any:
            hidden = output[0] * factor
            seen.append(hidden[0])
            if isinstance(output, tuple):
                return (hidden, *output[1:])
            output.last_hidden_state = hidden
            return output

        with self.locked():
            hook = self.model.base_model.register_forward_hook(enlarge)
            try:
                own = self.own_logits(tokens)
            finally:
                hook.remove()
        if len(seen) != 1 or seen[0].ndim != 2 or seen[0].shape[-1] != getattr(self.head, "in_features", -1):
            return None
        return seen[0], own

    def _logits(self, hidden: torch.Tensor, wanted: torch.Tensor | None, *, plain: bool = False) -> torch.Tensor:
        """float32 logits [L, vocabulary or wanted] of hidden states [L, hidden]; `plain` is without scale and cap."""
        head = self.head
        with torch.no_grad():
            # Only an ordinary linear layer may be read row by row: a quantised, adapted or offloaded one is called.
            if wanted is not None and type(head) is nn.Linear and type(head.weight) is nn.Parameter and _bare(head):
                wanted = wanted.to(head.weight.device)
                bias = None if head.bias is None else head.bias[wanted]
                logits = F.linear(hidden.to(head.weight.device), head.weight[wanted], bias).float()
            else:
                logits = head(hidden).float()
                logits = logits if wanted is None else logits[:, wanted.to(logits.device)]
            if plain:
                return logits
            if self._scale != 1.0:
                logits = logits * self._scale
            return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)

    def _checked(self, few_ids: np.ndarray) -> torch.Tensor:
        if len(few_ids) and (few_ids.min() < 0 or few_ids.max() >= self.vocab_size):
            raise RequestError(f"ids {few_ids.min()}..{few_ids.max()} reach outside the head's {self.vocab_size} rows")
        return torch.from_numpy(few_ids.astype(np.int64)).to(self.device)


def _bare(module: nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"))
