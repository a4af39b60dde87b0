"""The folders of the models that ship with the package: policy, toolprm, c-prm, orm."""

from pathlib import Path

MODELS = Path(__file__).parent
