"""From a prompt to what the transformer attends to: cleaning, token ids, the UMT5 encoder."""
