"""`millstream envoy-config`: the proxy's configuration for servers that run elsewhere."""

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def envoy_config(
    server: Annotated[
        list[str], typer.Option(metavar="HOST:PORT", help="A server's gRPC port; repeat it for each of them.")
    ],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the proxy listens.")] = "0.0.0.0:8080",
    admin_socket: Annotated[
        str, typer.Option(metavar="PATH", help="Unix socket for the proxy's own administration.")
    ] = "/run/millstream/envoy.sock",
    proxy_token: Annotated[
        str | None,
        typer.Option(envvar="MILLSTREAM_PROXY_TOKEN", show_envvar=True, help="The secret that the servers know it by."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Origin whose pages may call; repeat it.")
    ] = None,
    max_request_bytes: Annotated[
        int | None,
        typer.Option(
            min=1024,
            envvar="MILLSTREAM_MAX_REQUEST_BYTES",
            show_envvar=True,
            help="Largest request over REST, as the servers have it. Default: theirs, 4 MiB.",
        ),
    ] = None,
) -> None:
    """Print the proxy's configuration for a list of servers (Envoy reads it as YAML or JSON)."""
    from millstream.adapters.envoy import DEFAULT_MAX_BODY_BYTES, render

    host, port = _address(listen, "--listen")
    print(
        render(
            listen_host=host,
            listen_port=port,
            servers=[_address(text, "--server") for text in server],
            admin_socket=admin_socket,
            proxy_token=proxy_token,
            cors_origins=cors_origin or (),
            max_body_bytes=max_request_bytes or DEFAULT_MAX_BODY_BYTES,
        )
    )


def _address(text: str, option: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT", param_hint=option)
    return host.strip("[]"), int(port)
