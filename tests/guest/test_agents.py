"""A client of the Model Context Protocol drives the real server, which drives a real guest."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.guest.conftest import REPOSITORY, Lab


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    return dict(answer.structured_content or {})


def test_an_agent_finds_a_crash_reads_its_log_and_debugs_the_guest(lab: Lab, tmp_path: Path) -> None:
    for name in ("oops", "hello"):
        shutil.copytree(REPOSITORY / "examples" / name, tmp_path / name)
    argv = lab.command("mcp")
    server = StdioServerParameters(command=sys.executable, args=argv[1:], env=lab.environment, cwd=REPOSITORY)

    async def session() -> None:
        async with Client(stdio_client(server)) as client:
            verdict = await call(client, "run", module="oops", exercise="cat /proc/oops")
            assert (verdict["outcome"], verdict["findings"][0]["place"]) == ("oops", "oops.c:27")
            (marked,) = [line for line in verdict["findings"][0]["source"] if line.startswith(">")]
            assert "found->value" in marked
            log = await call(client, "read_evidence", run=verdict["evidence"]["run"], file="dmesg.txt", contains="RIP")
            assert any("null_read" in line for line in log["lines"])
            stopped = await call(
                client,
                "gdb_batch",
                module="hello",
                commands=["break hello_init", "continue", "print __this_module.name"],
            )
            assert "hello_init" in stopped["output"] and '"hello"' in stopped["output"], stopped
            assert (await call(client, "run", module="hello"))["ok"]

    with anyio.from_thread.start_blocking_portal() as portal:
        portal.call(session)
