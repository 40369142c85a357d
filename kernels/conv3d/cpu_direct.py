"""`conv3d` on the native CPU kernels as direct convolution, whatever the shape.

The baseline for Winograd's speed and error.
"""

from kinema.ops.conv3d.cpu import conv3d, pack_direct

__all__ = ["conv3d", "pack_conv3d"]

pack_conv3d = pack_direct
