"""Files and pixels: reading pictures and videos, writing videos, and the pixel conversions of diffusers."""
