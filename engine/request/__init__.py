"""What is asked and what comes back: plain data."""

from kinema.request.generation import GenerationRequest

__all__ = ["GenerationRequest"]
