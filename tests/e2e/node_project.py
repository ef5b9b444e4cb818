"""Examples that Node runs: installed from their lock file and built in a folder of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NODE = 20
_OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "ENOTCACHED", "E403")
_PARTS = ("package.json", "package-lock.json", "tsconfig.json", ".npmrc", "src")


def built(sources: Path, home: Path, **environment: str) -> str:
    """Build a project in `home`; return the path of Node.

    Skips the test where Node is missing or too old, or where its packages cannot be had.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node and npm are not installed")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").split(".")[0]) < NODE:
        pytest.skip(f"Node {NODE} or newer is needed, not {version.strip()}")
    for name in _PARTS:
        copy = shutil.copytree if (sources / name).is_dir() else shutil.copyfile
        copy(sources / name, home / name)
    environment |= {"npm_config_cache": str(home / ".cache")}
    installed = _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], home, environment)
    if installed.returncode and any(code in installed.stderr for code in _OFFLINE):
        pytest.skip(f"npm cannot reach a registry: {installed.stderr.strip()[-300:]}")
    assert installed.returncode == 0, installed.stderr
    made = _run([npm, "run", "build"], home, environment)
    assert made.returncode == 0, made.stdout + made.stderr
    return node


def check_locks(sources: Path) -> None:
    """Versions are pinned, with hashes; where packages come from is the installer's business."""
    package = json.loads((sources / "package.json").read_text())
    pins = [*package["dependencies"].values(), *package["devDependencies"].values()]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", pin) for pin in pins)
    lock = json.loads((sources / "package-lock.json").read_text())
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert len(packages) > len(pins)
    assert all(each["integrity"].startswith("sha512-") and "resolved" not in each for each in packages.values())
    assert all("node_modules/" in name for name in packages)


def _run(argv: list[str], home: Path, more: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=home, env=os.environ | more, capture_output=True, text=True, timeout=300, check=False
    )
