"""The facts about this machine that the checks of `qmt-bridge doctor` need."""
