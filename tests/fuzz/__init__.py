"""A fuzzer of all that is read: `python -m tests.fuzz --cases 5000 --seed 0`."""
