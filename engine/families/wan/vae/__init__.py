"""AutoencoderKLWan."""
