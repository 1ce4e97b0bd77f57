"""An exporter: the design and what it was measured by, as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from nfsearch.export import Winner, require_free
from nfsearch.support.files import write_atomically


class JsonExporter:
    """One file."""

    def export(self, winner: Winner, out: Path) -> Path:
        require_free(out)
        metrics = {name: found.value for name, found in winner.record.metrics.items()}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps({"layers": winner.record.notation, "metrics": metrics}))
        return out
