"""Whether values are what they should be: those of files, of calls, and names that only diffusers has."""
