"""What a request will need, stage by stage."""
