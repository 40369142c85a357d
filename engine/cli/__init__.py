"""The command line: its verbs, their parser and their printing."""
