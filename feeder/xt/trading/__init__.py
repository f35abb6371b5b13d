"""The trade sessions: pushes and queries of each account, and what of them has been published."""
