"""`python -m kmlab` is `kmlab`."""

from kmlab.cli.app import main

if __name__ == "__main__":
    main()
