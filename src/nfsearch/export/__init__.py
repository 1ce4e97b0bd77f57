"""Candidates taken out of a search."""

from nfsearch.export.export import choose, export_hf, export_yaml, load_architecture, require_free

__all__ = ["choose", "export_hf", "export_yaml", "load_architecture", "require_free"]
