"""The `millstream` command. Each of its commands is a module of this package, loaded when it is called."""


def main() -> None:
    """Run the command line."""
    from millstream.cli.app import app  # the import of this package alone must stay cheap

    app()
