"""Triton kernels, each beside its launcher and its torch reference; imported as toolprm_decode.kernels."""
