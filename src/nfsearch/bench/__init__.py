"""`nfsearch bench`: operators, models and training against the best libraries and the memory's floor."""
