"""Commands for agents: mcp."""

from __future__ import annotations

from kmlab.cli.options.shared_options import Debug, Json, LabFile, set_global_options


def mcp(lab: LabFile = None, json: Json = False, debug: Debug = False) -> None:
    """Serve agents with the Model Context Protocol, on stdio.

    The agent runs modules, reads logs and debugs guests with tools.
    """
    set_global_options(json=json, debug=debug)
    from importlib.util import find_spec

    from kmlab import api
    from kmlab.cli.options.shared_options import real_host
    from kmlab.common.errors import ConfigError

    if find_spec("mcp") is None:
        raise ConfigError("kmlab mcp needs the Python package mcp", "pip install 'kmlab[mcp]'")
    session = api.open_lab(lab, host=real_host())
    from kmlab.integrations.mcp_server import serve

    serve(session)
