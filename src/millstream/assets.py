"""Files that come with the package: Envoy's templates and descriptors, migrations, examples.

In a source tree they stand at the top level; a wheel carries them inside the package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_PACKED = _PACKAGE / "_assets"


def asset(*parts: str) -> Path:
    """Return the path of a file or directory, such as `asset("envoy", "millstream.binpb")`.

    Raises FileNotFoundError when the installation lacks it.
    """
    root = _PACKED if _PACKED.is_dir() else _PACKAGE.parents[1]
    path = root.joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(f"this installation of millstream lacks {'/'.join(parts)}")
    return path
