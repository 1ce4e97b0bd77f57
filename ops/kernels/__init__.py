"""Triton kernels: the decode step (`decode`) and, in training and prefill, the recurrences over
chunks and what surrounds them (`training`).

Imported only where Triton is installed; `nfsearch.ops.chooser` decides where they serve.
"""
