"""Batch norm's running statistics, estimated anew on the images that are to be judged.

During training D's batch norm sees real and generated batches in turn, so its running statistics describe a mixture
that never occurs: judged with them, a good Q can look several points worse. Before D or Q is evaluated, its statistics
are averaged over batches of the kind it will see. No labels are involved.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from fastinfogan.networks import Discriminator

_NORMS = nn.BatchNorm1d | nn.BatchNorm2d


@torch.no_grad()
def recalibrated(discriminator: Discriminator, batches: Iterable[torch.Tensor]) -> Discriminator:
    """A copy in eval mode whose running statistics are the plain average over ``batches`` of images."""
    judge = copy.deepcopy(discriminator)
    for module in judge.modules():
        if isinstance(module, _NORMS):
            module.reset_running_stats()
            module.momentum = None  # a cumulative average instead of an exponential one
    judge.train()
    for images in batches:
        judge(images)
    return judge.eval()
