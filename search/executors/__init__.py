"""Who evaluates: worker processes on one or many machines (`ray`), or this process (`local`)."""
