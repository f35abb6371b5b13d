"""A program of any CPython from 3.6 on: calls functions of the strategy, and prints what they return.

    python3.6 strategy_answers.py STRATEGY

A line of the standard input is ``["name", argument, ...]``, each line of the output the result, both in JSON. An
argument ``{"object": {...}}`` is an object with these fields, ``{"frame": {...}}`` a table as pandas has it.
"""

import json
import sys
from types import SimpleNamespace


class Frame:
    def __init__(self, rows, index):
        self.rows = rows
        self.index = index
        self.columns = list(rows[0])

    def to_dict(self, form):
        assert form == "records", form
        return self.rows


def argument(value):
    if isinstance(value, dict) and set(value) == {"object"}:
        return SimpleNamespace(**value["object"])
    if isinstance(value, dict) and set(value) == {"frame"}:
        return Frame(**value["frame"])
    return value


def main():
    space = {"__name__": "strategy"}
    with open(sys.argv[1], "rb") as file:
        exec(compile(file.read(), "strategy", "exec"), space)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        result = space[name](*map(argument, arguments))
        sys.stdout.write(json.dumps(result.decode("ascii") if isinstance(result, bytes) else result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
