"""How an answer is looked for: the settings, the scheduler that runs it on the engines, and the tree that it leaves."""

from toolprm_decode.search.settings import Search
from toolprm_decode.search.tree import SearchTree

__all__ = ["Search", "SearchTree"]
