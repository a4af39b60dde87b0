"""The built-in world: lexicon.py has its words, world.py draws questions, pretraining.py teaches them to models.

build.py makes the models that ship with the package out of it.
"""
