"""From a model folder to its parts, loaded when they are first needed."""
