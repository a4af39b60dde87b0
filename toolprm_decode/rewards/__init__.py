"""Reward models that judge the steps of a call while it is being written."""

from toolprm_decode.rewards.toolprm import DEFAULT_TAGS, STEP_KINDS, ToolPRM

__all__ = ["DEFAULT_TAGS", "STEP_KINDS", "ToolPRM"]
