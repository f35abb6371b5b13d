"""The journal of trade events: its file, and the only thread that uses it."""
