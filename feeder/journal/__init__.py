"""The journal of trade events: its file, and the thread that alone uses it."""
