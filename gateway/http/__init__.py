"""Market data over plain HTTP: newest records, stored records, and server-sent events (docs/http.md)."""
