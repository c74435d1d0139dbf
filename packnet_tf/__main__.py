"""`python -m packnet_tf` is the program `packnet`."""

from packnet_tf import cli

if __name__ == "__main__":
    cli.run()
