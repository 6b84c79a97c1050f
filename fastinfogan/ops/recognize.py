"""What Q says about an image: the likeliest category of each categorical code, and mean and std of each continuous one.

The output of the recognition head is logits, means and log-stds side by side. Whoever labels images, draws a
confusion matrix or inverts an image to its codes needs these four tables, in one launch and one read of the head.
Source: Chen et al. 2016, section 6 (softmax for categorical, factored Gaussian for continuous codes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastinfogan.codes import LatentSpec
from fastinfogan.errors import UserError
from fastinfogan.ops.arguments import DTYPES
from fastinfogan.ops.backend import choose, cuda_kernel_takes, implementation
from fastinfogan.ops.head_loss import LOG_STD_MIN


class Recognition(NamedTuple):
    """One row per image.

    categories: ``int64 [n, n_categorical]``, the likeliest index, the lowest of equals.
    confidence: ``float32 [n, n_categorical]``, its softmax probability.
    mean, std: ``float32 [n, n_continuous]``; the std is bounded below as in the loss, by exp(LOG_STD_MIN) = 0.4.
    """

    categories: torch.Tensor
    confidence: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor


def recognize(spec: LatentSpec, recognition: torch.Tensor, *, backend: str | None = None) -> Recognition:
    """Read the recognition head's output ``[n, spec.head_dim]``; float32, bfloat16 or float16, any row stride.

    Not differentiable: the loss has its own op.

    Raises:
        UserError: another number of columns than ``spec`` has, another dtype, or an unknown backend.
    """
    if recognition.dim() != 2 or recognition.shape[1] != spec.head_dim:
        raise UserError(f"recognize expected Q's output of shape (n, {spec.head_dim}), got {tuple(recognition.shape)}")
    if recognition.dtype not in DTYPES:
        raise UserError(f"recognize expected float32, bfloat16 or float16, got {recognition.dtype}")
    chosen = choose(backend, recognition.device.type, native_on_cuda=cuda_kernel_takes(spec.categorical), triton=False)
    return Recognition(*torch.ops.fastinfogan.recognize(recognition, spec.categorical, chosen))


def _reference(
    recognition: torch.Tensor, categorical: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    q = recognition.float()
    n_continuous = (q.shape[1] - sum(categorical)) // 2
    *logits, mean, log_std = q.split([*categorical, n_continuous, n_continuous], dim=1)
    categories = torch.empty((len(q), len(categorical)), dtype=torch.int64, device=q.device)
    confidence = torch.empty((len(q), len(categorical)), dtype=torch.float32, device=q.device)
    for i, of_code in enumerate(logits):
        categories[:, i] = of_code.argmax(1)
        confidence[:, i] = of_code.softmax(1).amax(1)
    # Copies, because a custom op may not return a view of its input; row after row, whatever order the input is in.
    mean, log_std = (part.clone(memory_format=torch.contiguous_format) for part in (mean, log_std))
    return categories, confidence, mean, log_std.clamp(LOG_STD_MIN).exp()


@torch.library.custom_op("fastinfogan::recognize", mutates_args=())
def _recognize(
    recognition: torch.Tensor, categorical: Sequence[int], backend: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    run = implementation("recognize", backend, _reference)
    return run(recognition, categorical)


@_recognize.register_fake
def _(recognition, categorical, backend):  # type: ignore[no-untyped-def]
    rows, n_categorical = recognition.shape[0], len(categorical)
    n_continuous = (recognition.shape[1] - sum(categorical)) // 2
    return (
        recognition.new_empty((rows, n_categorical), dtype=torch.int64),
        recognition.new_empty((rows, n_categorical), dtype=torch.float32),
        recognition.new_empty((rows, n_continuous), dtype=torch.float32),
        recognition.new_empty((rows, n_continuous), dtype=torch.float32),
    )
