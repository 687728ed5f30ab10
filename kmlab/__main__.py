"""`python -m kmlab` is `kmlab`, and so is the installed program."""

import signal


def program() -> None:
    """Run kmlab. An interrupt while it is still being loaded ends it at once, without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from kmlab.cli.app import program as run

    run()


if __name__ == "__main__":
    program()
