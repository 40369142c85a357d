"""Caches over the steps of a request: what they are asked for, and what one request knows of them.

`GenerationRequest(cache=…)` takes the configurations; the `Cache` belongs to the running request alone.
"""

from kinema.caches.cache import Cache, Decision, Run, Skip, foreseen
from kinema.request.caching import (
    CacheConfig,
    EasyCacheConfig,
    GuidanceEndConfig,
    HoldCacheConfig,
    MagCacheConfig,
    RateCacheConfig,
)

__all__ = [
    "Cache",
    "CacheConfig",
    "Decision",
    "EasyCacheConfig",
    "GuidanceEndConfig",
    "HoldCacheConfig",
    "MagCacheConfig",
    "RateCacheConfig",
    "Run",
    "Skip",
    "foreseen",
]
