"""Makes the pictures of the documents from a real run: of the terminal and of the report.

python benchmarks/pictures.py --folder=/tmp/pictures

It trains on the digits in a terminal of 80 columns, unless the folder has the run, writes the
report and photographs both. It needs a Chromium.
"""

import argparse
import base64
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import browser

_COLUMNS, _LINES = 80, 60
_REPORT_SIZE = 1200, 1010


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the run")
    options = parser.parse_args(arguments)
    workdir = options.folder / "runs" / "digits"
    if not (workdir / "summary.json").exists():
        screens = train(options.folder)
        draw(screens, ROOT / "docs" / "terminal.svg")
    report = options.folder / "report.html"
    command = [sys.executable, "-m", "simsiam_tf.report", workdir, f"--output={report}"]
    subprocess.run(command, cwd=ROOT, check=True)
    photograph(report, ROOT / "docs" / "report.png")
    return 0


def train(folder):
    """Trains in a terminal; returns its screen in the middle of the run, and at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", "--recipe=digits", "--workdir=runs/digits"],
        cwd=folder, stdin=child, stdout=child, stderr=child,
        env=os.environ | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(child)
    screen = pyte.Screen(_COLUMNS, _LINES)
    stream = pyte.ByteStream(screen)
    screens = []
    while True:
        try:
            stream.feed(os.read(parent, 65536))
        except OSError:  # the program has ended
            break
        if not screens and any("epoch 21/" in line for line in screen.display):
            screens.append(text_of(screen))
    if process.wait():
        sys.exit("\n".join(screen.display))
    return [*screens, text_of(screen)]


def text_of(screen):
    """Returns what a screen shows, with its colours."""
    lines = []
    for number in range(_LINES):
        line = Text()
        for column in range(_COLUMNS):
            cell = screen.buffer[number][column]
            color = "default" if cell.fg == "default" else cell.fg.replace("brown", "yellow")
            if len(color) == 6 and all(digit in "0123456789abcdef" for digit in color):
                color = f"#{color}"
            line.append(cell.data, f"{'bold ' if cell.bold else ''}{color}")
        line.rstrip()
        lines.append(line)
    while lines and not lines[-1].plain:
        lines.pop()
    return Text("\n").join(lines)


def draw(screens, path):
    console = Console(record=True, width=_COLUMNS, file=io.StringIO())
    console.print(Text("$ python train.py --recipe=digits --workdir=runs/digits", "bold"))
    console.print(screens[0])
    console.print(Text("\n… and at the end:\n", "italic"))
    console.print(screens[1])
    console.save_svg(str(path), title="simsiam_tf")


def photograph(page, path):
    with (
        # The browser may still write to its profile when it is ended.
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        browser.started(browser.find(), profile) as tab,
    ):
        tab.open(page.as_uri(), _REPORT_SIZE[0])
        tab.wait("document.documentElement.className == 'drawn'")
        path.write_bytes(base64.b64decode(tab.picture(*_REPORT_SIZE)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
