"""API keys: what a key may do, and the file that holds their hashes."""
