"""The tool for agents, called by the official client over stdin and stdout."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from parity.commands import mcp
from tests.parity.verify.forged import HONEST, SPEC, WRONG

ROOT = Path(__file__).parents[3]


def called(folder: Path, arguments: dict[str, str], *options: str) -> tuple[Any, Any]:
    """Start the server, list its tools and call `verify`; return the tools and the result."""

    async def run() -> tuple[Any, Any]:
        command = ["-m", "parity", "mcp", "--trials", "1", *options]
        server = StdioServerParameters(
            command=sys.executable, args=command, cwd=str(folder), env={"PYTHONPATH": str(ROOT)}
        )
        async with Client(server) as client:
            return await client.list_tools(), await client.call_tool("verify", arguments)

    return asyncio.run(run())


def test_a_client_gets_the_verdict(tmp_path: Path):
    (tmp_path / "spec.py").write_text("print('not JSON')\n" + SPEC)
    (tmp_path / "port.py").write_text(HONEST)
    tools, result = called(tmp_path, {"port": "port.py"}, "--spec", "spec.py")
    (tool,) = tools.tools
    assert tool.name == "verify"
    assert list(tool.input_schema["properties"]) == ["port"]
    assert not result.is_error
    assert result.structured_content["verdict"] == "equal"


def test_a_client_names_the_specification(tmp_path: Path):
    (tmp_path / "spec.py").write_text(SPEC)
    (tmp_path / "port.py").write_text(WRONG)
    tools, result = called(tmp_path, {"spec": "spec.py", "port": "port.py"})
    assert list(tools.tools[0].input_schema["properties"]) == ["spec", "port"]
    assert result.structured_content["verdict"] == "different"
    line = next(i for i, text in enumerate(WRONG.splitlines(), 1) if "jax.nn.gelu" in text)
    assert result.structured_content["change"]["line"] == line


def test_errors_are_of_one_line(tmp_path: Path):
    (tmp_path / "spec.py").write_text(SPEC)
    _, result = called(tmp_path, {"port": "none.py"}, "--spec", "spec.py")
    assert result.is_error
    assert "none.py is not a file" in result.content[0].text


def test_a_missing_specification_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none\.py is not a file"):
        mcp.server(tmp_path / "none.py", 1)
