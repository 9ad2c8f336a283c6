"""`python -m personae`: the same as the `personae` script."""

from personae.cli.main import main

main()
