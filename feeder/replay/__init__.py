"""Replay: a source that plays what was recorded."""
