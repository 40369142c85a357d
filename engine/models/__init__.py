"""Diffusion transformers, one file per family: what differs between them; what they share is in blocks.py."""
