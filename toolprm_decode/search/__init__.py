"""How an answer is looked for: the settings, the loop between the core and the engines, the tree that it leaves."""

from toolprm_decode.search.settings import Search
from toolprm_decode.search.tree import SearchTree

__all__ = ["Search", "SearchTree"]
