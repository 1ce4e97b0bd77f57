"""One decoded token of each sequence: the kernels that a residual block is made of, and the embedding and head."""
