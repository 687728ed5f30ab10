"""`python -m kmlab` is `kmlab`."""

from kmlab.cli.app import program

if __name__ == "__main__":
    program()
