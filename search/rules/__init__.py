"""Which running jobs are stopped early: a rule a file, its settings beside it."""
