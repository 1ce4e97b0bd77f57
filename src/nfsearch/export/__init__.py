"""Candidates taken out of a search: an exporter a file."""

from nfsearch.export.choose import choose, passed_over, require_free
from nfsearch.export.exporter import EXPORTERS, Exporter, Winner
from nfsearch.export.recipe import load_architecture

__all__ = ["EXPORTERS", "Exporter", "Winner", "choose", "load_architecture", "passed_over", "require_free"]
