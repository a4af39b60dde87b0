"""Checks the kernels on a GPU, then times them and whole decodes: `python -m benchmarks.gpu`, see README.md."""
