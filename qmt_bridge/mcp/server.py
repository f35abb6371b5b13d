"""The MCP server over standard input and output, by the official package `mcp`: lists and calls the tools."""

from __future__ import annotations

from typing import Any

import msgspec
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from qmt_bridge import __version__
from qmt_bridge.errors import BadRequest
from qmt_bridge.mcp.gateway import Failure, Gateway
from qmt_bridge.mcp.tools import TOOLS

_INSTRUCTIONS = (
    "Market data and account events of one QMT Bridge gateway (Chinese A-shares, miniQMT), read-only: nothing can be "
    "ordered, cancelled or changed. Tell the reader what `notice` says, above all that data is SIMULATED."
)
_READ_ONLY = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=True)


def make_server(gateway: Gateway) -> Server[Any]:
    """Return the server with the tools of `TOOLS`, which ask `gateway`."""

    async def list_tools(_: Any, __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(
            tools=[
                Tool(
                    name=tool.name,
                    title=tool.title,
                    description=tool.description,
                    input_schema=tool.schema(),
                    annotations=_READ_ONLY,
                )
                for tool in TOOLS.values()
            ]
        )

    async def call_tool(_: Any, params: CallToolRequestParams) -> CallToolResult:
        tool = TOOLS.get(params.name)
        if tool is None:
            return _result(f"there is no tool {params.name[:64]!r}; there are {', '.join(TOOLS)}", is_error=True)
        try:
            asked = msgspec.convert(params.arguments or {}, tool.takes)
            async with gateway.call():
                return _result(await tool.run(gateway, asked))
        except msgspec.ValidationError as exc:
            return _result(f"{exc}; the input schema of {tool.name} says what it takes", is_error=True)
        except BadRequest as exc:
            return _result(exc.reason, is_error=True)
        except Failure as exc:
            return _result(str(exc), is_error=True)

    return Server(
        "qmt-bridge",
        version=__version__,
        title="QMT Bridge",
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def serve(gateway: Gateway) -> None:
    """Serve the program that has started this one, until it closes standard input."""
    server = make_server(gateway)
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


def _result(text: str, *, is_error: bool = False) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=text)], is_error=is_error)
