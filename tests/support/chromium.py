"""A headless Chromium, spoken to through a pipe: what a page logs, what it asks for, and what stands on it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip


def find() -> str | None:
    """The program's path, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


needed = pytest.mark.skipif(find() is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")


class Browser:
    """One tab.

    Attributes:
        events: everything the browser reported, in order.
    """

    def __init__(self, read: int, write: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._read, self._write, self._last, self._rest = read, write, 0, b""
        target = self._send("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to the tab and wait for its answer."""
        return self._send(method, parameters, self._session)

    def open(self, path: Path, wait_for: str) -> None:
        """Open a local file and wait until the expression holds."""
        self.send("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + 300
        while not self.evaluate(wait_for):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{wait_for} never came true; the browser said {self.complaints()}")
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and what the browser itself logged."""
        said = []
        for event in self.events:
            found, kind = event["params"], event["method"]
            if kind == "Runtime.exceptionThrown":
                said.append(json.dumps(found["exceptionDetails"])[:500])
            elif kind == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
                said.append(json.dumps(found["args"])[:500])
            elif kind == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
                said.append(found["entry"]["text"])
        return said

    def requests(self) -> list[str]:
        """Every address that was asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def _send(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], 60)[0]:
                raise TimeoutError("the browser is silent")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise EOFError("the browser is gone")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, ended afterwards."""
    program = find()
    if program is None:
        raise FileNotFoundError(f"none of {', '.join(NAMES)} is installed")
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        place = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
        process = subprocess.Popen(
            ["bash", "-c", place, program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(from_us)
        os.close(to_us)
        try:
            tab = Browser(from_browser, to_browser)
            yield tab
            tab._send("Browser.close", {})
            process.wait(20)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(to_browser)
            os.close(from_browser)
