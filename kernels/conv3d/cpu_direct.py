"""`conv3d` on the native CPU kernels as the plain sum over its taps, whatever the shape.

What Winograd's transforms are measured against, in speed and in error.
"""

from kinema.ops.conv3d.cpu import conv3d, pack_direct

__all__ = ["conv3d", "pack_conv3d"]

pack_conv3d = pack_direct
