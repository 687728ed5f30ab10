"""The server for agents, as a client of the Model Context Protocol sees it over stdin and stdout."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from kmlab.common.errors import ConfigError
from kmlab.config.lab import Lab
from kmlab.integrations.mcp_server import check_gdb_commands
from kmlab.provision import lifecycle
from kmlab.run import evidence
from tests.pages import code, rows, section
from tests.places import REPOSITORY, TEST_DATA

Session = Callable[[Client], Awaitable[None]]


@contextlib.asynccontextmanager
async def connected(*words: str) -> AsyncIterator[Client]:
    """A client of the server that a module of Python is."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", *words],
        cwd=REPOSITORY,
        env=dict(os.environ),
    )
    async with Client(stdio_client(server)) as client:
        yield client


def talk(lab: Lab, session: Session) -> None:
    """Run a conversation with the server of a lab with the modules hello, params, waits and broken."""
    for name in ("waits", "broken"):
        (lab.folder / name).mkdir()
        (lab.folder / name / "Kbuild").write_text(f"obj-m := {name}.o\n")

    async def whole() -> None:
        with anyio.fail_after(120):
            async with connected("tests.fake_mcp_server", str(lab.folder)) as client:
                await session(client)

    anyio.run(whole)


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    assert answer.structured_content is not None
    return dict(answer.structured_content)


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error
    return " ".join(str(getattr(block, "text", "")) for block in answer.content)


def test_the_tools_are_few_and_each_says_what_it_does(lab: Lab) -> None:
    async def session(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"run", "test", "crashes", "explain", "kernels", "gdb_batch", "read_evidence"}
        assert all(tool.description and tool.output_schema for tool in tools.values())
        assert tools["run"].input_schema["required"] == ["module"]
        told = {code(cells[0])[0] for cells in rows(section(REPOSITORY / "docs" / "agents.md", "Tools"))}
        assert told == set(tools)

    talk(lab, session)


def test_a_crash_is_a_compact_verdict_with_references_and_next_calls(lab: Lab) -> None:
    async def session(client: Client) -> None:
        verdict = await call(client, "run", module="hello")
        assert (verdict["outcome"], verdict["ok"], verdict["expected"]) == ("oops", False, ["pass"])
        (finding,) = verdict["findings"]
        assert finding["function"] == "hello_init"
        assert len(json.dumps(verdict)) < 6000
        assert {"dmesg.txt", "console.log", "result.json"} <= set(verdict["evidence"]["files"])
        following = verdict["next"][0]
        assert following["tool"] == "read_evidence"
        part = await call(client, following["tool"], **following["arguments"])
        assert any("RIP: 0010:hello_init" in line for line in part["lines"])
        few = await call(client, "read_evidence", **following["arguments"], lines=1, contains="hello_init")
        assert (len(few["lines"]), few["total_lines"]) == (1, 1)

        passed = await call(client, "run", module="hello", expect="oops")
        assert passed["ok"] and passed["next"] == []
        broken = await call(client, "run", module=str(lab.folder / "broken"))
        assert broken["errors"] == ["broken.c:3: expected ';'"]
        assert broken["next"][0]["arguments"]["file"] == "build.log"

    talk(lab, session)


def test_many_runs_are_a_table_in_which_only_the_unexpected_ones_are_long(lab: Lab) -> None:
    async def session(client: Client) -> None:
        table = await call(client, "test", modules=["hello", "params"], guests=["debian", "other"])
        assert (table["ok"], table["runs"]) == (False, 4)
        assert [v["module"] for v in table["not_as_expected"]] == ["hello", "hello", "params", "params"]
        table = await call(client, "test", modules=["broken"])
        assert table["not_as_expected"][0]["outcome"] == "build-failed"

    talk(lab, session)


def test_a_saved_log_is_judged(lab: Lab) -> None:
    async def session(client: Client) -> None:
        log = TEST_DATA / "oops" / "null-deref-read-6.12.txt"
        judged = await call(client, "crashes", log=str(log))
        assert judged["findings"][0]["kind"] == "oops"
        assert "no such file" in (await refused(client, "crashes", log="nowhere")).lower()

    talk(lab, session)


def test_a_mistake_is_an_error_with_a_hint_and_no_traceback(lab: Lab) -> None:
    async def session(client: Client) -> None:
        assert "there is no guest 'debain'" in await refused(client, "run", module="hello", guest="debain")
        assert "(hint: " in await refused(client, "run", module="hello", expect="ops")
        for text in (await refused(client, "run", module="no/where"), await refused(client, "kernels", image="x")):
            assert "Traceback" not in text and text

    talk(lab, session)


def test_long_work_reports_progress_and_a_cancelled_call_leaves_a_usable_lab(lab: Lab) -> None:
    async def session(client: Client) -> None:
        seen: list[str] = []
        counts: list[float] = []

        async def note(progress: float, total: float | None, message: str | None) -> None:
            counts.append(progress)
            seen.append(message or "")

        started = anyio.Event()

        async def notice(progress: float, total: float | None, message: str | None) -> None:
            if "exercise" in (message or ""):
                started.set()

        await client.call_tool("run", {"module": "hello"}, progress_callback=note)
        assert any("restoring the guest" in message for message in seen), seen
        assert counts == sorted(set(counts))
        async with anyio.create_task_group() as group:
            arguments = {"module": "waits", "exercise": "./wait.sh"}
            group.start_soon(functools.partial(client.call_tool, "run", arguments, progress_callback=notice))
            await started.wait()
            group.cancel_scope.cancel()
        again = await call(client, "run", module="hello")
        assert again["outcome"] == "oops"

    talk(lab, session)


@pytest.mark.parametrize(
    "name",
    [
        "../lab.yaml",
        "../../../lab.yaml",
        "/etc/passwd",
        "link",
        "folder/passwd",
        "",
        ".",
        "collected/../link",
        "pipe",
        "a\0b",
    ],
)
def test_no_name_leads_out_of_the_folder_of_a_run(lab: Lab, name: str) -> None:
    runs = lifecycle.lab_files(lab).runs
    folder = runs / "run"
    folder.mkdir(parents=True)
    (folder / "dmesg.txt").write_text("inside\n")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "folder").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    (runs / "outside").symlink_to("/etc")
    assert evidence.read_evidence(runs, "run", "dmesg.txt") == "inside\n"
    assert evidence.evidence_files(folder) == ["dmesg.txt"]
    with pytest.raises(ConfigError, match="has no file"):
        evidence.read_evidence(runs, "run", name)
    for run in ("..", ".", "", "run/..", "outside", "/etc"):
        with pytest.raises(ConfigError, match="has no file"):
            evidence.read_evidence(runs, run, "passwd")


@pytest.mark.parametrize(
    "command",
    [
        "shell id",
        "!id",
        "python print(1)",
        'print $_shell("id")',
        "thread apply all shell id",
        "thread apply all -s -q pipe info line | id",
        "thread apply 1 shell id",
        "frame apply all shell id",
        "f apply 1 shell id",
        "source x",
        "bt\nshell id",
        "set logging file /tmp/x",
        "dump memory /tmp/x 0 1",
        "target remote x",
        "",
    ],
)
def test_a_command_of_gdb_that_reaches_this_host_is_refused(command: str) -> None:
    with pytest.raises(ConfigError, match="does not take this command"):
        check_gdb_commands([command])


def test_commands_of_gdb_that_look_at_the_guest_are_taken() -> None:
    commands = ["bt 8", "info line f", "p/x jiffies", "x/2i $pc", "thread apply all bt", "thread 2", "frame 1", "c"]
    assert check_gdb_commands([*commands, "set var x = 1", "disassemble /s f"]) is None  # type: ignore[func-returns-value]


def test_the_command_serves_the_lab_that_it_is_given(lab: Lab) -> None:
    async def session() -> None:
        with anyio.fail_after(60):
            async with connected("kmlab", "mcp", "--lab", str(lab.path)) as client:
                explained = await call(client, "explain", file=str(TEST_DATA / "ko" / "frames.ko"))
                assert explained["schema"] == "kmlab.explain/1"
                assert [guest["guest"] for guest in explained["files"][0]["guests"]] == ["debian", "other"]

    anyio.run(session)
