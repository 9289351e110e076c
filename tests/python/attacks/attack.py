"""Does what a test tells it: one JSON object a line on standard input, one answer a line on standard output.

usage: attack.py, with lines like {"attack": "handshake.strangers", "target": ["127.0.0.1", 4433], ...}
"""
import importlib
import json
import sys
import traceback


def main():
    for line in sys.stdin:
        order = json.loads(line)
        module, function = order.pop("attack").split(".")
        try:
            answer = {"done": getattr(importlib.import_module(module), function)(**order)}
        except Exception:  # the test says what went wrong, and goes on
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
