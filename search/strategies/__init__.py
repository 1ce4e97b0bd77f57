"""How the next candidate is chosen: a strategy a file, its settings beside it."""
