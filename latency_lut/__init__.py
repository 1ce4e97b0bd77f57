"""What an architecture costs in time: a table measured on the device, and the sum of its rows.

Nothing here imports torch; measuring does, in `nfsearch.latency_lut.profiler`, `.verify` and `.device`.
"""

from nfsearch.latency_lut.errors import OutOfMemory, TableError
from nfsearch.latency_lut.estimator import Estimate
from nfsearch.latency_lut.files import load_table, save_table
from nfsearch.latency_lut.keys import Key
from nfsearch.latency_lut.places import keys_for
from nfsearch.latency_lut.provenance import Provenance
from nfsearch.latency_lut.rows import Row
from nfsearch.latency_lut.settings import LatencySettings
from nfsearch.latency_lut.table import LatencyTable
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
    "keys_for",
    "load_table",
    "save_table",
]
