"""Evolutionary architecture search for small hybrid language models that are fast on your device.

The parts: `nfsearch.space` (what can be built), `nfsearch.ops` (what it is built of), `nfsearch.latency_lut` (what it
costs), `nfsearch.proxies` (what it is worth), `nfsearch.search` (how to choose). Nothing heavy is imported here.
"""

__version__ = "0.1.0"
