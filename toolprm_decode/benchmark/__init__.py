"""Measures what a search costs beside loops over plain transformers, all in one run: `toolprm benchmark`.

The peers are what one writes without this package: xgrammar masks, a key-value cache of transformers, the reward model
called on texts. They draw with the same random numbers and so find the same answers, which each run checks.
"""
