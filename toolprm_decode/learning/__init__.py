"""From questions with known answers to a reward model: read, mask, roll out, label, train (docs/teach.md).

annotate.py is the pipeline over readers.py, masking.py, rollouts.py (in shards.py), labels.py and records.py.
training.py trains on what it writes, by collation.py and metrics.py; judging.py asks any reward model about it. world/
draws questions, and makes the models of the package.
"""
