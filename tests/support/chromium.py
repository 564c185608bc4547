"""A headless Chromium that a test looks through: its DevTools protocol over two pipes.

No driver and no library is between: a command is a line of JSON that ends in a zero byte.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 60.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root has no other
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


MOVED = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
ends = [os.dup(int(number)) for number in sys.argv[1:3]]
while min(ends) < 5:
    ends = [os.dup(end) for end in ends]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Puts the pipes where the browser looks for them, and becomes it; it is killed when we end."""


@dataclass(frozen=True)
class Request:
    """One request that the browser made."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Page:
    """One tab. Its events are kept as they come."""

    browser: Chromium = field(repr=False)
    session: str
    events: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, parameters, self.session)

    def run(self, script: str) -> Any:
        """What a JavaScript expression, which may be a promise, gives."""
        said = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until an expression is true; returns what it gives."""
        deadline = time.monotonic() + SECONDS
        while not (found := self.run(script)):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.05)
        return found

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.documentElement?.dataset.ready === 'true'")

    def look(
        self, width: int, height: int, *, dark: bool = False, languages: str | None = None
    ) -> None:
        """Be a screen of this size, in light or dark, that prefers these languages."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        if languages is not None:
            agent = self.run("navigator.userAgent")
            self.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=languages)

    def screenshot(self, path: Path) -> None:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def press(self, key: str, *, shift: bool = False, times: int = 1) -> None:
        """Press a key as a hand does."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        code = {" ": "Space"}.get(key, key)
        number = {"Enter": 13, " ": 32, "Tab": 9, "Backspace": 8, "Delete": 46}.get(key)
        number = number or {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key]
        about = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 * shift}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def drag(self, points: list[tuple[float, float]]) -> None:
        """Draw with the mouse."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 2), "mouseReleased"]
        for kind, (x, y) in zip(kinds, points, strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def named(self, method: str) -> list[dict[str, Any]]:
        """The events of one kind, so far."""
        return [event["params"] for event in list(self.events) if event["method"] == method]

    def requests(self) -> list[Request]:
        """All that the browser's network log has."""
        found = []
        for event in self.named("Network.requestWillBeSent"):
            asked = event["request"]
            parts = [base64.b64decode(p["bytes"]) for p in asked.get("postDataEntries", [])]
            found.append(Request(asked["method"], asked["url"], asked["headers"], b"".join(parts)))
        return found


class Chromium:
    """The browser's process."""

    def __init__(self, home: str) -> None:
        assert CHROMIUM is not None
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()

        command = [CHROMIUM, *FLAGS, f"--user-data-dir={home}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", MOVED, str(commands), str(answers), *command],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "HOME": home},
        )
        os.close(commands)
        os.close(answers)
        self._number = 0
        self._said: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with os.fdopen(self._answers, "rb") as pipe:
            held = b""
            while chunk := pipe.read1(1 << 16):
                *messages, held = (held + chunk).split(b"\0")
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._said[message["id"]].put(message)
                    elif message.get("sessionId") in self._pages:
                        self._pages[message["sessionId"]].events.append(message)

    def call(
        self, method: str, parameters: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        answer = self._said[self._number] = queue.SimpleQueue()
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        said = answer.get(timeout=SECONDS)
        assert "error" not in said, (method, said)
        result: dict[str, Any] = said["result"]
        return result

    def page(self) -> Page:
        """A tab of its own, with nothing kept from others; its network and console are watched."""
        context = self.call("Target.createBrowserContext", {})["browserContextId"]
        made = {"url": "about:blank", "browserContextId": context}
        target = self.call("Target.createTarget", made)["targetId"]
        attached = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call("Network.enable", maxPostDataSize=1 << 24)
        return page

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError, queue.Empty):
            self.call("Browser.close", {})
        os.close(self._commands)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        self._reader.join(5)


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    """A browser, gone at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="privserve-chromium-") as home:
        browser = Chromium(home)
        try:
            yield browser
        finally:
            browser.close()
