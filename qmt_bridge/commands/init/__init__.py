"""`qmt-bridge init`: six questions, the settings that follow from the answers, and the example files."""
