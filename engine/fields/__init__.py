"""Checks of values that come from files and from calls, and advice for names that only diffusers has."""
