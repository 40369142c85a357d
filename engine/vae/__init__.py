"""What the VAEs of every family share: caches between chunks, tiles, the posterior."""
