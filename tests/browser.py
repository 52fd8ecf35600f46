"""A headless Chromium, spoken to by the DevTools protocol over two pipes: no driver, no port."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import threading
import time

NAMES = (
    "chromium",
    "chromium-headless-shell",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
_SECONDS = 120  # after which a browser that hangs is ended


def find():
    """The path of a browser; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def started(path, profile):
    """A context with a `Browser`; `profile` is a folder for what it keeps."""
    commands_out, commands_in = os.pipe()
    answers_out, answers_in = os.pipe()
    process = subprocess.Popen(
        [
            *("bash", "-c", f'exec "$@" 3<&{commands_out} 4>&{answers_in}', "bash", path),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}", "--hide-scrollbars"),
        ],
        pass_fds=(commands_out, answers_in),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands_out)
    os.close(answers_in)
    timer = threading.Timer(_SECONDS, process.kill)
    timer.start()
    try:
        with open(commands_in, "wb", buffering=0) as commands, open(answers_out, "rb") as answers:
            yield Browser(commands, answers)
    finally:
        timer.cancel()
        process.kill()
        process.wait()


class Browser:
    """One tab."""

    def __init__(self, commands, answers):
        self._commands, self._answers = commands, answers
        self._numbers = itertools.count(1)
        self._session = None
        self._events = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._call(f"{domain}.enable")

    def open(self, url, width, dark=False):
        """Opens a page on a screen of so many pixels, a phone's where it is narrow.

        Returns:
          The addresses that were asked for, and what the browser complained of.
        """
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=844, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self._call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        asked = self._of("Network.requestWillBeSent")
        complaints = [entry["entry"]["text"] for entry in self._of("Log.entryAdded")]
        complaints += [str(entry) for entry in self._of("Runtime.exceptionThrown")]
        return [event["request"]["url"] for event in asked], complaints

    def value(self, expression):
        """What a JavaScript expression gives on the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"]["value"]

    def wait(self, expression):
        """Waits until a JavaScript expression is true on the page."""
        while not self.value(f"Boolean({expression})"):
            time.sleep(0.1)

    def point(self, place, click=False):
        """Moves the pointer, in two steps, to `[x, y]` of the window, and may click there."""
        x, y = place
        kinds = [("mouseMoved", x - 1), ("mouseMoved", x)]
        kinds += [("mousePressed", x), ("mouseReleased", x)] if click else []
        for kind, left in kinds:
            pressed = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self._call("Input.dispatchMouseEvent", type=kind, x=left, y=y, **pressed)

    def picture(self, width, height):
        """The top of the page as a PNG, in base 64."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        return self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]

    def run_scripts(self, wanted):
        """Says whether pages that are opened from now on may run their scripts."""
        self._call("Emulation.setScriptExecutionDisabled", value=not wanted)

    def _of(self, method):
        return [event["params"] for event in self._events if event["method"] == method]

    def _call(self, method, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._events.append(answer)

    def _read(self):
        """The next message; each ends with a zero byte."""
        parts = []
        while (part := self._answers.read(1)) != b"\0":
            assert part, "the browser ended"
            parts.append(part)
        return json.loads(b"".join(parts))
