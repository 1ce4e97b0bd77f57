"""Studies: questions about the method itself, each answered by many trainings and a report."""
