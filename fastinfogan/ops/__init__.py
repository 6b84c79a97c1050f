"""The fused ops: one public function each, one file each; the file chooses the backend and holds the reference."""

from fastinfogan.ops.head_loss import LOG_STD_MIN, HeadLoss, head_loss
from fastinfogan.ops.image_batch import image_batch
from fastinfogan.ops.pack_codes import pack_codes, unpack_codes
from fastinfogan.ops.recognize import Recognition, recognize
from fastinfogan.ops.sample_latents import sample_latents
from fastinfogan.ops.traversal import traversal

__all__ = [
    "LOG_STD_MIN",
    "HeadLoss",
    "Recognition",
    "head_loss",
    "image_batch",
    "pack_codes",
    "recognize",
    "sample_latents",
    "traversal",
    "unpack_codes",
]
