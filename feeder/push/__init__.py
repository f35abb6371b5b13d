"""The source ``push``: data that programs of the user's push by lines of JSON (docs/push.md)."""
