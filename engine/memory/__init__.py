"""The memory that a request will need, stage by stage."""
