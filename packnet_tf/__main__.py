"""`python -m packnet_tf` is the program `packnet`."""

from packnet_tf import cli

cli.run()
