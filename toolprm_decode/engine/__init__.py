"""Runs a transformers model from a plan: shared segments, forked rows in a paged pool, any rows of the head."""

from toolprm_decode.engine.batch import Batch
from toolprm_decode.engine.engine import Engine
from toolprm_decode.engine.store import KVStore

__all__ = ["Batch", "Engine", "KVStore"]
