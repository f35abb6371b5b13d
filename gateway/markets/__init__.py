"""Codes that the store has only within their market: which they are, and how a client is served them."""
