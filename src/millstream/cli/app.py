"""The table of commands."""

import importlib
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# name -> (module, attribute). The attribute is a typer.Typer, or a function that is a command by itself.
_COMMANDS = {
    "dev": ("dev", "app"),
    "serve": ("serve", "app"),
    "publish": ("publish", "publish"),
    "artifacts": ("artifacts", "app"),
    "payloads": ("payloads", "app"),
    "correlations": ("correlations", "app"),
    "types": ("types", "app"),
    "agents": ("agents", "app"),
    "workflows": ("workflows", "app"),
    "workflow": ("workflow", "app"),
    "runs": ("runs", "app"),
    "tasks": ("tasks", "app"),
    "promises": ("promises", "app"),
    "workers": ("workers", "app"),
    "kinds": ("workers", "kinds"),
    "tenants": ("tenants", "app"),
    "queues": ("queues", "app"),
    "top": ("top", "top"),
    "conformance": ("conformance", "conformance"),
    "migrate": ("migrate", "app"),
    "config": ("config", "app"),
    "envoy-config": ("envoy", "app"),
    "backup": ("backup", "backup"),
    "restore": ("backup", "restore"),
    "logs": ("logs", "app"),
    "doctor": ("doctor", "app"),
}


class _Lazy(TyperGroup):
    """Imports a command's module when the command is asked for: `--help` of one does not load them all."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        return _command(cmd_name, getattr(importlib.import_module(f"millstream.cli.{module}"), attribute))


def _command(name: str, found: typer.Typer | Callable[..., object]) -> Any:
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer()
        found.command(name)(function)
    found._add_completion = False  # noqa: SLF001 (completion is the whole command's, not each one's)
    command = typer.main.get_command(found)
    command.name = name
    return command


app = typer.Typer(
    cls=_Lazy,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("millstream"))
        raise typer.Exit


@app.callback()
def millstream(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Artifacts, the agents that react to them, and tasks: durable, over gRPC and REST. Begin with `millstream dev`."""
