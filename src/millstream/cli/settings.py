"""The effective configuration: flags over environment over file over defaults."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from millstream.config import Settings

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="MILLSTREAM_CONFIG", show_envvar=True, dir_okay=False, help="Settings as YAML, by name."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting (see millstream config); repeat it."),
]


def load(file: Path | None, overrides: Sequence[str], **flags: object) -> "Settings":
    """Return the settings; flags that are None were not given.

    Ends the command with exit code 2 and one line for each setting that is wrong or unknown.
    """
    from pydantic import ValidationError
    from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

    from millstream.config import Settings

    from_file = _read(file)
    given = _parse(overrides) | {name: value for name, value in flags.items() if value is not None}
    _refuse_unknown(given, Settings.model_fields, "--set")
    _refuse_unknown(from_file, Settings.model_fields, str(file))

    class WithFile(Settings):
        """The same settings, with the file as a source below the environment."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            *args: PydanticBaseSettingsSource,
            **kwargs: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            from pydantic_settings import InitSettingsSource

            above = super().settings_customise_sources(settings_cls, *args, **kwargs)
            return (*above, InitSettingsSource(settings_cls, init_kwargs=from_file))

    try:
        return WithFile(**given)
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]) or "settings"
            typer.echo(f"millstream: {name}: {problem['msg']}", err=True)
        raise typer.Exit(2) from None


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise typer.BadParameter(f"cannot read {file}: {reason}", param_hint="--config") from None
    if not isinstance(content or {}, dict):
        raise typer.BadParameter(f"{file} holds no settings by name", param_hint="--config")
    return dict(content or {})


def _parse(overrides: Sequence[str]) -> dict[str, object]:
    parsed: dict[str, object] = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise typer.BadParameter(f"{override!r} is not NAME=VALUE", param_hint="--set")
        parsed[name.strip().replace("-", "_")] = value
    return parsed


def _refuse_unknown(values: dict[str, Any] | dict[str, object], known: Any, source: str) -> None:
    for name in values:
        if name not in known:
            raise typer.BadParameter(f"there is no setting {name!r}; millstream config lists them", param_hint=source)
