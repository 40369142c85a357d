"""Kinds of models: what generic code may ask of one, and the registry of those there are."""
