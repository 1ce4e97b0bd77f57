"""The picture of a latency table's check."""

from __future__ import annotations

from matplotlib.figure import Figure

from nfsearch.latency_lut.verification import Verification
from nfsearch.report.pictures import png


def check_png(found: Verification) -> bytes:
    """Left: estimates over measurements, both in milliseconds. Right: the relative error over the models' depth."""
    figure = Figure(figsize=(10.5, 4.6), dpi=144, layout="constrained")
    times, errors = figure.subplots(1, 2)
    every = [ms for check in found.checks for ms in (check.measured_ms, check.estimated_ms)]
    ends = (min(every) / 1.15, max(every) * 1.15)
    times.plot(ends, ends, color="0.6", linewidth=1, linestyle="--", zorder=1)
    for name, agreement in found.agreement.items():
        checks = [check for check in found.checks if check.workload == name]
        label = f"{name}: MAPE {agreement.mape:.1%}, worst {agreement.worst:+.1%}"
        style = {"s": 26, "alpha": 0.8, "linewidths": 0}
        times.scatter([c.measured_ms for c in checks], [c.estimated_ms for c in checks], label=label, **style)
        errors.scatter([c.depth for c in checks], [100 * c.relative for c in checks], **style)
    times.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured (ms)", ylabel="estimated (ms)")
    errors.axhline(0, color="0.6", linewidth=1, linestyle="--", zorder=1)
    errors.set(xlabel="operators in the model", ylabel="(estimated - measured) / measured (%)")
    for axes in (times, errors):
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    times.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{found.device}, {found.dtype}: {len({c.digest for c in found.checks})} whole models", fontsize=10)
    return png(figure)
