"""``python -m fcache``: the command line without an installed script."""

from fcache.cli.main import main

main()
