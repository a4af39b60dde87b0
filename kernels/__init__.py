"""Triton kernels, each beside its launcher and its torch reference; imported as toolprm_decode.kernels.

- `attention`: what tokens read of shared prefixes and of their own paged tokens, merged by log-sum-exp
- `sampling`: mask, temperature and draws in one pass over the vocabulary
- `copying`: the copies of partly filled KV blocks, all layers at once
- `dispatch`: who computes, by device and environment

None of these modules is imported before it is needed: triton is there on Linux only.
"""
