"""Triton kernels: the decode step (`decode` and what it calls) and, in training and prefill, the recurrences over
chunks (`chunk_*`) and what surrounds them (`shortconv`, `norms`, `log_sigmoid`).

Imported only where Triton is installed; `nfsearch.ops.fused`, `.dispatch` and `.fusing` decide where they serve.
"""
