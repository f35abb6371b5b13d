"""The pages at `/` and `/docs`: files that a browser reads, and the URLs that serve them."""
