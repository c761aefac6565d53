"""The Model Context Protocol, by the official client over the real command."""

import contextlib
import json
import os
import sys

import pytest

pytest.importorskip("mcp", reason="the extra server is not installed")

from mcp import Client, MCPError, StdioServerParameters, stdio_client
from model_servers import LOCAL_HTTP

from mixtral_rag.qa import open_qa

pytestmark = LOCAL_HTTP  # an event loop has a pair of sockets of its own


@pytest.fixture(scope="module")
def command(tmp_path_factory, smollm):
    """The command over a store with one document."""
    folder = tmp_path_factory.mktemp("mcp")
    (folder / "pump.md").write_text("# Oil\n\nThe pump P-7 takes 4.5 litres of mineral oil.\n")
    qa = open_qa(store=folder / "store")
    qa.ingest([folder / "pump.md"])
    qa.close()
    options = {"--store": folder / "store", "--model": smollm, "--n-ctx": 2048,
               "--max-tokens": 16, "--kv-bytes": 0}  # fmt: skip
    arguments = ["-m", "mixtral_rag", "mcp", *(str(x) for pair in options.items() for x in pair)]
    return StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))


async def test_an_assistant_searches_and_asks(command):
    async with Client(stdio_client(command)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"search", "ask", "list_documents"}
        assert all(tool.description for tool in tools.values())
        listed = await client.call_tool("list_documents", {})
        assert listed.structured_content["collections"]["default"] == ["pump.md"]
        question = {"question": "How many litres of oil does the pump take?"}
        found = await client.call_tool("search", question | {"k": 1})
        (passage,) = found.structured_content["passages"]
        assert "4.5 litres" in passage["text"]
        assert json.loads(found.content[0].text)["passages"] == [passage]
        answer = await client.call_tool("ask", question)
        assert answer.structured_content["text"]
        assert answer.structured_content["citations"][0]["name"] == "pump.md"


async def test_what_is_wrong_is_told_to_the_assistant(command):
    async with Client(stdio_client(command)) as client:
        wrong = await client.call_tool("search", {"question": "oil", "collection": "none"})
        assert wrong.is_error
        assert "no collection" in wrong.content[0].text
        for bad in ({"question": ""}, {"question": "oil", "k": 1000}, {}):
            with contextlib.suppress(MCPError):
                assert (await client.call_tool("search", bad)).is_error
