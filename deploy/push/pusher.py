"""Pushes invented ticks of the codes that are wanted to a feeder with `--source push` (docs/push.md).

    python pusher.py [NAME]

Needs Python 3.6 or later, and no package. QMT_BRIDGE_PUSH is the address of the feeder on this machine
(127.0.0.1:5560), and QMT_BRIDGE_PUSH_KEY its push_key. For real data replace `invent`: your feed calls `push`, on any
thread.
"""

import json
import os
import random
import socket
import sys
import threading
import time

HOST, PORT = os.environ.get("QMT_BRIDGE_PUSH", "127.0.0.1:5560").rsplit(":", 1)
NAME = (sys.argv[1:] or ["example"])[0]
HELLO = {"type": "hello", "protocol": 1, "name": NAME, "kinds": ["quote"], "simulated": True}
if HOST not in ("127.0.0.1", "localhost", "::1"):
    # It does not speak TLS, and all on the way could read the key.
    sys.exit("QMT_BRIDGE_PUSH: a feeder on another machine needs TLS (push.md): connect by a tunnel to this machine")
if "QMT_BRIDGE_PUSH_KEY" in os.environ:
    HELLO["key"] = os.environ["QMT_BRIDGE_PUSH_KEY"]
SILENCE = 20  # Seconds after which the feeder is given up: it sends a heartbeat every 5 s.


class Connection:
    def __init__(self):
        self.wanted = set()  # Codes.
        self.unsent = {}  # What the feeder has not taken yet: of a code the newest tick only.
        self.changed = threading.Condition()  # Its lock is for both.
        self.sender = threading.Thread()
        self.socket = socket.create_connection((HOST, int(PORT)), SILENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def queue(self, key, message):
        """Send a message, or let it replace the one of the same key that waits. From any thread, without waiting."""
        with self.changed:
            self.unsent[key] = message
            self.changed.notify()

    def send(self, pause):
        """Send what waits, and a heartbeat after `pause` seconds without anything; `sender` runs this."""
        message = {}
        try:
            while message.get("type") != "bye":
                with self.changed:
                    if not self.unsent:
                        self.changed.wait(pause)
                    message = self.unsent.pop(next(iter(self.unsent))) if self.unsent else {"type": "heartbeat"}
                self.say(message)  # It waits while the feeder takes no more.
        except OSError:
            pass  # The connection has ended, which `serve` finds too.

    def say(self, message):
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def serve(self):
        """Do what the feeder says until the connection ends; return whether another pusher has taken the name."""
        with self.socket, self.socket.makefile("rb") as lines:
            self.say(HELLO)
            try:
                return any(self.obey(line) == "replaced" for line in lines)
            except KeyboardInterrupt:
                # It will not come back, so that its end is no fault.
                self.queue("bye", {"type": "bye"})
                if self.sender.is_alive():
                    self.sender.join(2)
                raise

    def obey(self, line):
        """Do what a line of the feeder says; return the code of a refusal."""
        message = json.loads(line.decode())
        topic = message.get("topic", {})
        if message["type"] == "welcome":
            self.sender = threading.Thread(target=self.send, args=(message["silence"] / 3,), daemon=True)
            self.sender.start()
        elif message["type"] == "subscribe" and topic.get("period") == "tick":
            self.wanted.add(topic["code"])
        elif message["type"] == "subscribe":
            self.queue(line, {"type": "refuse", "topic": topic, "code": "unsupported_period", "error": "ticks only"})
        elif message["type"] == "unsubscribe" and topic.get("period") == "tick":
            self.wanted.discard(topic["code"])
        elif message["type"] in ("refused", "error"):
            print(line.decode().strip(), file=sys.stderr)
            return message["code"]


def push(code, tick):
    """Send a tick, if its code is wanted. Any thread may call this. JSON has no NaN: give None."""
    connection = current
    if connection and code in connection.wanted:
        topic = {"kind": "quote", "code": code, "period": "tick"}
        connection.queue(code, {"topic": topic, "time": int(time.time() * 1000), "data": tick})


def invent():
    price, volume = 10.0, 0
    while True:
        for code in list(current.wanted) if current else ():
            price, volume = max(1, round(price + random.choice((-0.01, 0, 0.01)), 2)), volume + 1
            push(code, {"time": int(time.time() * 1000), "lastPrice": price, "volume": volume})
        time.sleep(0.5)


current, delay, replaced = None, 1, False
threading.Thread(target=invent, daemon=True).start()
try:
    while not replaced:
        began, reason = time.time(), "the feeder has ended it"
        try:
            current = Connection()
            replaced = current.serve()
        except (OSError, ValueError) as exc:
            reason = exc
        if not replaced:
            delay = 1 if time.time() - began > 60 else delay
            print("no connection, again in", delay, "s:", reason, file=sys.stderr)
            time.sleep(delay)
            delay = min(30, 2 * delay)
except KeyboardInterrupt:
    pass
