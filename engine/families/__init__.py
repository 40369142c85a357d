"""Model families: what generic code may ask of one, and the registry of the known ones."""
