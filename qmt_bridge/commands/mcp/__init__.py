"""`qmt-bridge mcp`: the server for AI applications."""
