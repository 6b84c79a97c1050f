"""The fused ops, a file for each (``pack_codes`` with its inverse), which chooses the backend and holds the reference.

Those of the layers and of the optimiser (``fc``, ``convolve``, ``norm_act``, ``adam``) are imported from their files.
"""

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
