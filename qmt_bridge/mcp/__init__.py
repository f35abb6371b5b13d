"""The MCP server: what an AI application reads of a gateway (docs/mcp.md)."""
