"""`python -m parity mcp`: `verify` as a tool for agents, over the Model Context Protocol on stdin and stdout."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.commands.options import Parser, positive

if TYPE_CHECKING:
    from mcp.server import MCPServer

INSTRUCTIONS = (
    "Checks whether a JAX port computes what a PyTorch reference computes: outputs and gradients, in float64 and "
    "float32, on secret weights and inputs. The field change says which line of the port to change, next what to try."
)


def main(args: Sequence[str], prog: str) -> int:
    """Serve `verify` to agents over the Model Context Protocol, on stdin and stdout."""
    options = _parse(args, prog)
    server(options.spec, options.trials).run("stdio")
    return 0


def _parse(args: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(prog, main.__doc__ or "")
    parser.add_argument(
        "--spec",
        metavar="SPEC.py",
        type=Path,
        default=None,
        help="The only specification that there is; without it, the agent names one with every call.",
    )
    parser.add_argument(
        "--trials", type=positive, metavar="N", default=3, help="Number of secret weights, inputs and shapes."
    )
    return parser.parse_args(args)


def server(spec: Path | None, trials: int) -> MCPServer:
    """Return the server, with one tool.

    Raises:
        ValueError: The MCP SDK is not installed, or there is no file `spec`.
    """
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise ValueError('parity mcp needs the MCP SDK: pip install "torch-jax-parity[mcp]"') from error
    if spec is not None and not spec.is_file():
        raise ValueError(f"{spec} is not a file: give the path of a Python file")
    made = MCPServer("parity", instructions=INSTRUCTIONS)

    async def checked(spec: str, port: str) -> dict[str, Any]:
        try:
            return await _verdict(spec, port, trials)
        except ValueError as error:
            raise ToolError(str(error)) from error

    async def verify(port: str) -> dict[str, Any]:
        """Verify a JAX port, given as the path of its file, against the reference; return the verdict.

        The file has `def port(weights)`, which returns a function of the reference's inputs; `weights` maps the names
        of PyTorch's state dict to arrays. Or `def port()`, which returns a flax.nnx.Module with PyTorch's names.
        """
        return await checked(str(spec), port)

    async def verify_with(spec: str, port: str) -> dict[str, Any]:
        """Verify a JAX port against a reference, both given as paths of Python files; return the verdict.

        SPEC has `reference()`, a torch.nn.Module, and `inputs(seed)`. PORT has `def port(weights)`, which returns a
        function of the reference's inputs; `weights` maps the names of PyTorch's state dict to arrays. Or
        `def port()`, which returns a flax.nnx.Module with PyTorch's names.
        """
        return await checked(spec, port)

    made.tool(name="verify", structured_output=True)(verify_with if spec is None else verify)
    return made


async def _verdict(spec: str, port: str, trials: int) -> dict[str, Any]:
    """Run the command in a process of its own, whose output is not that of the server.

    Raises:
        ValueError: It has ended with an error; the message is its last line.
    """
    command = [sys.executable, "-m", "parity", "verify", spec, port, "--json", "--trials", str(trials)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:  # the call was cancelled
            process.kill()
    try:
        found = json.loads(out)
    except ValueError:
        lines = err.decode(errors="replace").strip().splitlines() or ["no output"]
        raise ValueError(lines[-1][:500]) from None
    if not isinstance(found, dict):
        raise ValueError("the verdict is no object")
    return found
