"""The `millstream` command."""


def main() -> None:
    """Run the command line."""
