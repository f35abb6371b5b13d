"""The language of what the program says to people: English, or Chinese by tables whose keys are the English texts."""
