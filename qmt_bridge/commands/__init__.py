"""The larger commands of `qmt-bridge`, one a file."""
