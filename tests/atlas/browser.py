"""A real browser for tests: headless Chromium, driven over its DevTools protocol; no driver to install."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support import kill_tree, short_dir, until

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
KEYS = {"Enter": 13, "Escape": 27, "Home": 36, "End": 35, "ArrowUp": 38, "ArrowDown": 40, "Tab": 9, "ArrowRight": 39}


def executable() -> str | None:
    """Of the browser; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


class Failed(AssertionError):
    """The page's own code raised."""


class Tab:
    """One tab: what it shows is asked by JavaScript, what a person does comes as real input."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._id = 0
        self.problems: list[str] = []
        """What the page's console complained about, refusals of its content security policy among it."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._id += 1
        self._connection.send(json.dumps({"id": self._id, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=60))
            if message.get("id") == self._id:
                if "error" in message:
                    raise Failed(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        match message["method"]:
            case "Runtime.exceptionThrown":
                self.problems.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
            case "Log.entryAdded" if told["entry"]["level"] == "error":
                self.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise Failed(str(result["exceptionDetails"].get("exception", {}).get("description", result)))
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        """What all elements of this selector say, as a person sees it, on one line; empty if there is none."""
        seen = f"[...document.querySelectorAll({json.dumps(selector)})].filter(e => e.checkVisibility())"
        found = self.js(f"{seen}.map(e => e.innerText).join(' ')")
        return " ".join(str(found).split())

    def wait_for(self, selector: str, *words: str, within_s: float = 60.0) -> str:
        """Wait until the elements of this selector say all the words; what they say then."""

        def told() -> str:
            text = self.text(selector)
            return text if all(word in text for word in words) else ""

        try:
            return until(told, within_s=within_s, every_s=0.05)
        except AssertionError:
            shown = self.text("body")
            raise Failed(f"{selector} never said {words}; the page:\n{shown}\n{self.problems}") from None

    def go(self, url: str) -> None:
        """Open an address."""
        self.call("Page.navigate", url=url)

    def press(self, key: str) -> None:
        """Press one key: a name in KEYS, or a character."""
        known = {"windowsVirtualKeyCode": KEYS[key]} if key in KEYS else {}
        text = {"Enter": "\r", "Tab": ""}.get(key, key if len(key) == 1 else "")
        down = {"type": "keyDown", "key": key, "code": key if key in KEYS else "", **known}
        self.call("Input.dispatchKeyEvent", **down, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", **{**down, "type": "keyUp"})

    def type(self, text: str) -> None:
        """Type into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str, text: str = "") -> None:
        """Click the first element of this selector (that begins with the text), until the click has reached it."""
        place = f"""(() => {{
            const all = [...document.querySelectorAll({json.dumps(selector)})];
            const found = all.find((each) => each.innerText.trim().startsWith({json.dumps(text)}));
            found?.scrollIntoView({{ block: "center" }});
            const box = found?.getBoundingClientRect();
            if (!box?.width) return null;
            window.wasClicked = false;
            found.addEventListener("click", () => {{ window.wasClicked = true; }}, {{ capture: true, once: true }});
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""

        def clicked() -> bool:
            spot = self.js(place)
            if spot is None:
                return False
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1)
            return bool(self.js("window.wasClicked"))

        until(clicked, within_s=60, what=f"{selector} {text} is clicked")

    def window(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Be a window of this size, in light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call(
            "Emulation.setEmulatedMedia", features=[scheme, {"name": "prefers-reduced-motion", "value": "reduce"}]
        )

    def screenshot(self, path: Path) -> Path:
        """Keep what is seen."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path


@contextmanager
def browser() -> Iterator[Tab]:
    """A browser with one empty tab and a profile of its own; gone afterwards."""
    path = executable()
    assert path is not None
    with short_dir() as profile:
        flags = [*FLAGS, f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        process = subprocess.Popen(
            [path, *flags, "about:blank"],
            env={**os.environ, "TMPDIR": str(profile)},  # it is killed in the end, and would leave a directory there
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port_file = profile / "DevToolsActivePort"
            port = until(lambda: port_file.exists() and port_file.read_text().split("\n")[0], within_s=60)

            def tab_url() -> str | None:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                    tabs = [each for each in json.load(answer) if each["type"] == "page"]
                return tabs[0]["webSocketDebuggerUrl"] if tabs else None

            url = until(tab_url, within_s=60)
            assert url
            with connect(url, max_size=None, compression=None) as connection:
                yield Tab(connection)
        finally:
            kill_tree(process.pid)
            process.wait()
