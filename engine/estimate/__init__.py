"""How long a request will take: its FLOPs, and what earlier runs on this machine managed."""
