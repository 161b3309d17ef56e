"""The embedded data set: scenes composed from cut-out photographs and recordings."""
