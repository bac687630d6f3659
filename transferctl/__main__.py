"""`python -m transferctl`."""

from transferctl.cli import main

main()
