"""OpenVINO with bf16 as its precision hint: all that it multiplies in bf16 where the processor does, attention too."""

from __future__ import annotations

from kinema.bench.peers.openvino_f32 import OpenVino


class InBf16(OpenVino):
    settings = OpenVino.settings.replace("hint f32", "hint bf16")
    precision = "bf16"


PEER = InBf16()
