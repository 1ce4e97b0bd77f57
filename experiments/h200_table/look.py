"""How far two builds of the table differ, and what a layer of full attention costs beyond its row in whole models."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nfsearch.latency_lut import load_table
from nfsearch.latency_lut.bundled import bundled_table
from nfsearch.latency_lut.verification import known_verification
from nfsearch.space import Layer
from nfsearch.space.notation import parse_layers

table = load_table(bundled_table("nvidia-h200"))
again = load_table(Path(__file__).with_name("again.parquet"))
both = [(table.rows[key].latency_ms, row.latency_ms) for key, row in again.rows.items()]
apart = 100 * np.abs([new / old - 1 for old, new in both if old and new])
median, ninth, most = np.percentile(apart, [50, 90, 100])
print(f"{len(apart)} rows of builds begun {table.provenance.date} and {again.provenance.date} are apart by")
print(f"{median:.2f} % (median), {ninth:.1f} % (nine in ten are within), {most:.1f} % (the farthest)")

found = known_verification(table)
assert found is not None
for name in ("tpot_1k", "tpot_8k", "tpot_32k"):
    checks = [check for check in found.checks if check.workload == name]
    full = [parse_layers(check.architecture.rsplit(" @ ")[0]).count(Layer.of("A")) for check in checks]
    missing = [1e3 * (check.measured_ms - check.estimated_ms) for check in checks]
    slope, _ = np.polyfit(full, missing, 1)
    print(f"{name}: {slope:+.1f} µs for each layer of full attention in {len(checks)} whole models")
