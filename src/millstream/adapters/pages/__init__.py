"""The OpenAPI document and the pages that show it, from files of the package."""

from pathlib import Path
from typing import Final

from millstream.assets import asset
from millstream.domain.errors import NotFound

_FILES: Final = Path(__file__).parent / "files"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".png": "image/png",
}


class Pages:
    """What browsers are shown. Files are read with the first call that wants them, and kept: 4 MB in all."""

    def __init__(self) -> None:
        # By name, so that no name from outside is ever part of a path.
        self._paths = {path.name: path for path in _FILES.iterdir() if path.suffix in _TYPES}
        self._read: dict[Path, bytes] = {}

    def openapi(self) -> bytes:
        """The OpenAPI document. Raises FileNotFoundError where the installation lacks it."""
        return self._content(asset("docs", "openapi.json"))

    def file(self, name: str) -> tuple[str, bytes]:
        """The media type and the content of a file of the pages. Raises NotFound."""
        path = self._paths.get(name)
        if path is None:
            raise NotFound(f"the pages have no file {name!r}")
        return _TYPES[path.suffix], self._content(path)

    def _content(self, path: Path) -> bytes:
        if path not in self._read:
            self._read[path] = path.read_bytes()
        return self._read[path]
