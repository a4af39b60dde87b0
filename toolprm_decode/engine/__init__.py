"""Runs a transformers model from a plan: shared segments, forked rows in a paged pool, any rows of the head."""

from toolprm_decode.engine.attention import Batch, KVStore
from toolprm_decode.engine.engine import Engine

__all__ = ["Batch", "Engine", "KVStore"]
