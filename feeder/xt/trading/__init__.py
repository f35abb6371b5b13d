"""The trade sessions: pushes and queries of each account, and which of their events were published already."""
