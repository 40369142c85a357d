"""The Wan family: 2.1 T2V and I2V, 2.2 A14B, 2.2 TI2V-5B."""
