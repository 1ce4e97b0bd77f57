"""What an architecture costs in time: a table measured on the device, and the sum of its rows.

Nothing here imports torch; measuring does, in `nfsearch.latency_lut.profiler`, `.verify` and `.device`.
"""

from nfsearch.latency_lut.estimator import Estimate
from nfsearch.latency_lut.files import TableError
from nfsearch.latency_lut.keys import Key, keys_for
from nfsearch.latency_lut.provenance import Provenance, kernel_digest
from nfsearch.latency_lut.rows import Row
from nfsearch.latency_lut.settings import LatencySettings
from nfsearch.latency_lut.table import LatencyTable, OutOfMemory
from nfsearch.latency_lut.workload import Workload

__all__ = [
    "Estimate",
    "Key",
    "LatencySettings",
    "LatencyTable",
    "OutOfMemory",
    "Provenance",
    "Row",
    "TableError",
    "Workload",
    "kernel_digest",
    "keys_for",
]
