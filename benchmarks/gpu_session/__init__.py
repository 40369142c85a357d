"""What only a GPU can answer: one small file per question, and a runner that asks them in minutes (docs/gpu.md)."""
