"""Connections below the requests: what a client may send before and between them, and what that may cost."""
