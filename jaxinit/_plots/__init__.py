"""Pictures, one file a kind: every function takes a report or arrays and Matplotlib axes, and returns the axes."""
