"""The loop: all that one running request owns, and one step of many requests."""
