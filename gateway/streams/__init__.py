"""The streams of a worker: each is one upstream subscription, shared by all clients that subscribe the topic.

Pure. `values` follows the newest value of a topic, `events` follows every event of the journal; both build on `stream`.
`cohort` has a table of the phases of a stream's members.
"""
