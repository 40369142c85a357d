"""Continuing a clip piece by piece, each conditioned on what came before."""
