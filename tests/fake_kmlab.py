"""kmlab as a program whose guests are those of a fake world. The first module whose name is in WAITS does not end."""

from __future__ import annotations

import os

from kmlab.cli import app
from kmlab.cli.options.shared_options import cli_state
from kmlab.testing import Act, FakeModule, World


def main() -> None:
    waits = [FakeModule(name=name, load=Act(ends="hangs")) for name in os.environ.get("WAITS", "").split()]
    with World(*waits) as world:
        cli_state.build_host = lambda: world.host
        app.main()


if __name__ == "__main__":
    main()
