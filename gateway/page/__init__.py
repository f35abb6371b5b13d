"""The page at `/`: files that a browser reads, and the two URLs that serve them."""
