"""The streams of a worker: one upstream subscription each, shared by every client that subscribed its topic.

Pure. `values` follows the newest value of a topic, `events` follows every event of the journal; both build on `stream`.
`cohort` has the phases that the members of a stream go through, in one table.
"""
