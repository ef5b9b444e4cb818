"""A headless Chromium, driven over a pipe by its DevTools protocol: no driver, no port."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless_shell")
_WAIT_S = 30.0
_READS, _WRITES = 3, 4  # the descriptors that Chromium talks over
# Moves the pipe to the descriptors that Chromium wants, and becomes it. Both are out of the way first.
_MOVED = f"""
import os, sys, fcntl
read, write = (fcntl.fcntl(int(each), fcntl.F_DUPFD, 100) for each in sys.argv[1:3])
os.dup2(read, {_READS}), os.dup2(write, {_WRITES})
os.execvp(sys.argv[3], sys.argv[3:])
"""
_MOST = 64 * 1024 * 1024
_OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--window-size=1300,1000",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def program() -> str | None:
    """The browser's program; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """A page of a browser. `requests` are the addresses it asked for, `complaints` what it wrote of faults."""

    def __init__(self, reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._reading, self._writing = reading, writing
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session = ""

    async def begin(self) -> None:
        """Attach to an empty page."""
        target = (await self.send("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.send(f"{domain}.enable")

    async def read(self) -> None:
        """Take what the browser says, for as long as it does."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                self._take(json.loads((await self._reading.readuntil(b"\0"))[:-1]))

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._writing.write(json.dumps(command).encode() + b"\0")
        async with asyncio.timeout(_WAIT_S):
            found: dict[str, Any] = await answer
            return found

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self.send("Page.navigate", url=url)

    async def value(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        found = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, script: str) -> Any:
        """The value of an expression once it is true: the page is looked at again with each frame it draws."""
        waiting = f"""new Promise((done, late) => {{
            const end = Date.now() + {_WAIT_S * 900};
            const look = () => {{
                const found = (() => {{ try {{ return {script}; }} catch (none) {{ return null; }} }})();
                if (found) done(found instanceof Node ? true : found);
                else if (Date.now() > end) late(new Error("never came"));
                else setTimeout(look, 30);
            }};
            look();
        }})"""
        return await self.value(waiting)

    async def picture(self, path: Path) -> None:
        """Write what it shows as a PNG."""
        path.write_bytes(base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"]))

    def _take(self, said: dict[str, Any]) -> None:
        if (answer := self._answers.pop(said.get("id", 0), None)) is not None:
            if "error" in said:
                answer.set_exception(RuntimeError(said["error"]["message"]))
            else:
                answer.set_result(said["result"])
            return
        given = said.get("params", {})
        match said.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(given["request"]["url"])
            case "Runtime.exceptionThrown":
                details = given["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if given["entry"]["level"] == "error":
                self.complaints.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")


@contextlib.asynccontextmanager
async def browsing(found: str) -> AsyncIterator[Page]:
    """A page of a browser of its own, which ends with the block."""
    to_it, from_us = os.pipe()
    from_it, to_us = os.pipe()
    with tempfile.TemporaryDirectory(prefix="millstream-browser-", ignore_cleanup_errors=True) as home:
        # It ends when the pipe does, so also with the tests.
        argv = [found, *_OPTIONS, f"--user-data-dir={home}", "about:blank"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _MOVED, str(to_it), str(to_us), *argv,
            pass_fds=(to_it, to_us),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_it)
        os.close(to_us)
        loop = asyncio.get_running_loop()
        reading = asyncio.StreamReader(limit=_MOST)
        protocol = asyncio.StreamReaderProtocol(reading)
        coming, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(from_it, "rb"))
        going, flow = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(from_us, "wb"))
        page = Page(reading, asyncio.StreamWriter(going, flow, None, loop))
        taking = asyncio.create_task(page.read())
        try:
            await page.begin()
            yield page
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            await taking
            going.close()
            coming.close()
