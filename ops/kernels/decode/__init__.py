"""One decoded token of each sequence: a file for each operator's block, x + operator(norm(x)), and what they share.

A mixer takes three launches (norm and projection; its own kernel; norm, projection and residual), an FFN two. Attention
takes one more where several programs share a head's cache, whose results are added up, and a mixer whose heads are no
power of two, whose norm goes alone. Nothing waits for the device, so a whole model's step can be captured in a CUDA
graph.

The kernel of a mixer reads its state before its predecessor is complete, so that must not be EARLY (see `launch`) nor
write the state. A program owns VALUES columns of one head's state [keys, values]; what a head's programs share, its q
and k, each of them computes for itself.

With S' the decayed state and S = S' + k u^T: S^T q = S'^T q + (k . q) u. So all sums over the keys stand side by side
in these kernels, and the factors that scale q and k to length one come after them.
"""
