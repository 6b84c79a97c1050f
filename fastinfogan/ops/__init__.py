"""The fused ops: one public function each, one file each; the file chooses the backend and holds the reference."""

from fastinfogan.ops.head_loss import LOG_STD_MIN, HeadLoss, head_loss
from fastinfogan.ops.image_batch import image_batch
from fastinfogan.ops.pack_codes import check_categories, pack_codes, unpack_codes
from fastinfogan.ops.sample_latents import sample_latents

__all__ = [
    "LOG_STD_MIN",
    "HeadLoss",
    "check_categories",
    "head_loss",
    "image_batch",
    "pack_codes",
    "sample_latents",
    "unpack_codes",
]
