"""The server for agents on guests of a fake world, as a program: its argument is the folder of a lab."""

from __future__ import annotations

import sys
from pathlib import Path

from kmlab import api
from kmlab.integrations.mcp_server import serve
from kmlab.testing import Act, FakeModule, World
from tests.story import OOPS


def main() -> None:
    oops = FakeModule(name="hello", load=Act(kernel=OOPS, code=137))
    waits = FakeModule(name="waits", exercise=Act(ends="hangs"))
    broken = FakeModule(name="broken", build=Act(code=2, error="broken.c:3:1: error: expected ';'\n"))
    with World(oops, waits, broken) as world:
        serve(api.open_lab(Path(sys.argv[1]), host=world.host))


if __name__ == "__main__":
    main()
