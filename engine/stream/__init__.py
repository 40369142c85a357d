"""Clips that go on, piece by piece, each conditioned on what came before."""
