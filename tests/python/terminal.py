"""A command on a terminal of its own: what it shows is read from what it writes, by no code of ours.

Takes one JSON object on standard input: `command`, `environment` (what is added to it), `rows`, `columns`, and `script`, a list of steps.
Each waits until the screen shows all texts of `until`, and then sends `keys`, or the signal `signal`, or makes the file `file`. Prints one JSON object: the
screens at which each step was taken, the last one, all that was written, the exit status, and whether the terminal is as it was before.
"""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import struct
import sys
import termios
import time

DEADLINE = 120
# The begin of a sequence whose rest is still to come.
CUT = re.compile(r"\x1b(\[[0-9;?]*|[()])?$")
TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b[=>78]|([\s\S])")


class Screen:
    """As much of a terminal as the command uses."""

    def __init__(self, rows, columns):
        self.rows, self.columns = rows, columns
        self.row = self.column = 0
        self.rest = ""
        self.clear()

    def clear(self):
        self.cells = [[" "] * self.columns for _ in range(self.rows)]

    def feed(self, text):
        text = self.rest + text
        cut = CUT.search(text)
        self.rest = cut.group() if cut else ""
        text = text[: len(text) - len(self.rest)]
        for token in TOKEN.finditer(text):
            numbers, command, character = token.groups()
            if command == "H":
                row, column = ([int(n) for n in numbers.split(";")] + [1, 1])[:2] if numbers else (1, 1)
                self.row, self.column = row - 1, column - 1
            elif command == "J" or (command in "hl" if command else False) and numbers == "?1049":
                self.clear()
            elif command == "K":
                self.cells[self.row][self.column:] = [" "] * (self.columns - self.column)
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self.row = min(self.row + 1, self.rows - 1)
            elif character and character.isprintable():
                if self.row < self.rows and self.column < self.columns:
                    self.cells[self.row][self.column] = character
                self.column += 1

    def text(self):
        return "\n".join("".join(row).rstrip() for row in self.cells)


order = json.load(sys.stdin)
rows, columns = order["rows"], order["columns"]
leader, follower = pty.openpty()
fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
before = termios.tcgetattr(follower)
child = os.fork()
if child == 0:
    os.setsid()
    fcntl.ioctl(follower, termios.TIOCSCTTY, 0)
    for stream in range(3):
        os.dup2(follower, stream)
    os.execve(order["command"][0], order["command"], {**os.environ, "TERM": "xterm-256color", **order["environment"]})

screen, written, screens = Screen(rows, columns), "", []
decoder = codecs.getincrementaldecoder("utf-8")("replace")
deadline = time.monotonic() + DEADLINE


def read():
    """Takes what there is, and waits a little for it."""
    global written
    if select.select([leader], [], [], 0.05)[0]:
        text = decoder.decode(os.read(leader, 1 << 16))
        written += text
        screen.feed(text)


def end(status):
    print(json.dumps({
        "screens": screens,
        "screen": screen.text(),
        "written": written,
        "status": status,
        "restored": termios.tcgetattr(follower) == before,
    }))
    sys.exit()


def over():
    gone, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if gone else None


for step in order["script"]:
    while not all(text in screen.text() for text in step["until"]):
        read()
        status = over()
        if status is not None or time.monotonic() > deadline:
            if status is None:
                os.kill(child, 9)
            end({"waited for": step["until"], "status": status})
    screens.append(screen.text())
    if "keys" in step:
        os.write(leader, step["keys"].encode())
    if "signal" in step:
        os.kill(child, step["signal"])
    if "file" in step:
        open(step["file"], "x").close()
while (status := over()) is None:
    read()
    if time.monotonic() > deadline:
        os.kill(child, 9)
        end("never ended")
while select.select([leader], [], [], 0)[0]:
    read()
end(status)
