"""Answers to the questions of many askers: each at its own pace, within limits."""
