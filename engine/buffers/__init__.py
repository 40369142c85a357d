"""Memory: buffers that layers and steps reuse, and what the process and the machine have."""
