"""Fused decode kernels in Triton. Nothing here is imported before a CUDA model decodes; see `decode` for the entry."""
