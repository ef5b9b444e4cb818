"""The wheel has what the installed service needs beside its code."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_has_the_files_that_the_service_reads(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    pages = ROOT / "src" / "millstream" / "adapters" / "pages" / "files"
    assert {f"millstream/adapters/pages/files/{path.name}" for path in pages.iterdir()} <= names
    assets = ("docs/openapi.json", "envoy/millstream.binpb", "migrations/env.py", "examples/orders.py")
    assert {f"millstream/_assets/{name}" for name in assets} <= names
    assert all(name.startswith(("millstream/", "buf/", "millstream-")) for name in names)
