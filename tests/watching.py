"""kmlab as a person calls it, in a world of fake doors whose module does what its source says.

    python -m tests.watching watch hello

`#error` in hello.c is a build that fails, `panic()` a kernel that dies, `oops()` one that lives on.
"""

from __future__ import annotations

from pathlib import Path

from kmlab.cli import app
from kmlab.cli.options.shared_options import cli_state
from kmlab.testing import Act, FakeModule, World
from tests.story import OOPS, PANIC


class FromSource(dict[str, FakeModule]):
    """Each module as its folder has it now."""

    def get(self, name: str, default: object = None) -> FakeModule:
        text = (Path(name) / f"{name}.c").read_text()
        if "#error" in text:
            return FakeModule(name=name, build=Act(code=2, error=f"{name}.c:7:2: error: #error on purpose\n"))
        if "panic()" in text:
            return FakeModule(name=name, load=Act(kernel=PANIC, ends="lost"))
        if "oops()" in text:
            return FakeModule(name=name, load=Act(code=137, kernel=OOPS, taint=1 << 7))
        return FakeModule(name=name, load=Act(kernel=("Hello,\x07 world.",), taint=1 << 12))


if __name__ == "__main__":
    with World() as world:
        world.modules = FromSource()
        cli_state.build_host = lambda: world.host
        app.main()
