"""What a latency table can fail with."""

from nfsearch.support.errors import WorkFailed


class TableError(ValueError):
    """A latency table cannot be read, or does not hold what was asked for."""


class OutOfMemory(TableError):
    """A part of the model did not fit into the device's memory, says the table; or no batch of a throughput does."""


class Busy(WorkFailed):
    """Something else used the machine while it was measured."""
