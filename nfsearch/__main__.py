"""`python -m nfsearch`."""

from nfsearch.cli import main

main()
