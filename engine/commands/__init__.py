"""The command line's verbs, one file each: `add_arguments(parser)` and `run(arguments)`."""
