"""Conformance suites for extensions: the project's own pass them, and so can those of other packages."""

from nfsearch.testing.operators import OperatorSuite

__all__ = ["OperatorSuite"]
