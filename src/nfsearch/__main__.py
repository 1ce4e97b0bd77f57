"""`python -m nfsearch`."""

from nfsearch.cli.main import main

main()
