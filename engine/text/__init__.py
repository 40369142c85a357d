"""From a prompt to token ids: cleaning and tokenizing."""
