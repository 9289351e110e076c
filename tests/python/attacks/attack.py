"""Does what a test tells it: one JSON object a line on standard input, one answer a line on standard output.

usage: attack.py, with lines like {"attack": "handshake.strangers", "target": ["127.0.0.1", 4433], ...}
"""
import importlib
import json
import select
import sys
import traceback

import wire


def orders():
    """Lines of standard input; while none comes, connections that are kept are tended."""
    while True:
        while not select.select([sys.stdin], [], [], 0.5)[0]:
            wire.tend()
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def main():
    for line in orders():
        order = json.loads(line)
        module, function = order.pop("attack").split(".")
        try:
            answer = {"done": getattr(importlib.import_module(module), function)(**order)}
        except Exception:  # the test says what went wrong, and goes on
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
