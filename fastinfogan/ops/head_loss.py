"""The joint loss of the D and Q heads, with its gradients, in one op.

Everything that an InfoGAN minimises is a function of three small tensors: D's logit on real rows, D's logit on fake
rows, and Q's outputs on fake rows. One op computes every term of it and the gradients with respect to all three, so
that the trainer starts the backward pass from stored gradients and logs terms that cost nothing more.

Source: Chen et al. 2016, Eq. 1 (the GAN game), Eq. 5 (the variational bound L_I), section 6 (softmax for categorical
and factored Gaussian for continuous codes). The terms and their signs:

    D phase    softplus(-real) + softplus(fake)
    G phase    softplus(-fake), or Eq. 1's own log(1 - D) = -softplus(fake)
    codes      weight * -log softmax(logits)[category]
               weight * (((c - mean) / std)^2 / 2 + log std + ln(2 pi) / 2),  std = exp(log_std)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastinfogan.codes import LatentSpec
from fastinfogan.errors import UserError
from fastinfogan.ops.arguments import Kind, require
from fastinfogan.ops.backend import below_autograd, choose, constant, first_order, implementation, register_op

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

# At this std the Gaussian's peak density is 1, so log N <= 0 and the bound of a continuous code, like that of a
# categorical one, cannot exceed its entropy. Unbounded, a confident Q drives the likelihood to infinity and drowns
# the GAN loss.
LOG_STD_MIN = -HALF_LOG_2PI


@dataclass(frozen=True)
class HeadLoss:
    """What :func:`head_loss` returns. What an iteration does not ask for is not even sliced.

    attached: :attr:`statistics` as the op gave them, of which the loss alone has a gradient.
    gradients: of ``loss_scale * loss`` with respect to real_logits, fake_logits and recognition; empty where absent.
    """

    attached: torch.Tensor
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    @property
    def loss(self) -> torch.Tensor:
        """Scalar, what the phase minimises; differentiable."""
        return self.attached[0]

    @property
    def statistics(self) -> torch.Tensor:
        """``[3 + 2 * n_codes]``: loss, terms and information in one tensor, for accumulation in one addition."""
        return self.attached.detach()

    @property
    def terms(self) -> torch.Tensor:
        """``[2 + n_codes]``: the real term, the fake term, then -E[log Q] of each code in nats, unweighted."""
        return self.statistics[1 : 3 + (len(self.statistics) - 3) // 2]

    @property
    def information(self) -> torch.Tensor:
        """``[n_codes]``: H(c) + E[log Q(c|x)] of each code in nats, a lower bound of I(c; x)."""
        return self.statistics[3 + (len(self.statistics) - 3) // 2 :]


def head_loss(
    spec: LatentSpec,
    fake_logits: torch.Tensor,
    *,
    real_logits: torch.Tensor | None = None,
    recognition: torch.Tensor | None = None,
    categories: torch.Tensor | None = None,
    continuous: torch.Tensor | None = None,
    code_weights: torch.Tensor | None = None,
    saturating: bool = False,
    fixed_std: bool = False,
    loss_scale: torch.Tensor | None = None,
    backend: str | None = None,
) -> HeadLoss:
    """The loss of one phase: the D phase where ``real_logits`` is given, the G phase where it is not.

    Args:
        spec: which columns of ``recognition`` belong to which code.
        fake_logits: ``[n]``, D's logit on generated rows; any stride, float64, float32, bfloat16 or float16.
        real_logits: ``[m]``, D's logit on real rows.
        recognition: ``[n, spec.head_dim]``, Q's outputs on the generated rows; without it there are no code terms.
        categories: ``int64 [n, n_categorical]``, ``continuous``: ``[n, n_continuous]``: the codes that G was fed.
        code_weights: ``float32 [n_codes]``, one per entry of ``spec.names``; None weighs each 1.
        saturating: in the G phase, minimise log(1 - D) as Eq. 1 has it instead of -log D.
        fixed_std: take std = 1 and give the log-std columns no gradient.
        loss_scale: a scalar on the device that multiplies the gradients; the loss and the terms stay unscaled. For
            float16 logits pass it here: a scale applied to the loss comes after the gradients were rounded.

    Means are over rows; an empty batch has terms 0. A log-std below ``LOG_STD_MIN`` counts as ``LOG_STD_MIN``; its
    gradient is kept where descending it leads back above, so that no unit is stuck.

    Raises:
        UserError: shapes, dtypes or devices that do not fit together, or an unknown backend.
    """
    _check(spec, fake_logits, real_logits, recognition, categories, continuous, code_weights, loss_scale)
    outputs = [logits for logits in (fake_logits, real_logits, recognition) if logits is not None]
    # fp64 is for gradcheck: the fused kernels compute in fp32.
    in_float64 = any(logits.dtype == torch.float64 for logits in outputs)
    with below_autograd(*outputs):
        statistics, *gradients = _head_loss(
            fake_logits,
            real_logits,
            recognition,
            categories,
            continuous,
            code_weights,
            loss_scale,
            spec.categorical,
            spec.entropies,
            saturating,
            fixed_std,
            choose(backend, fake_logits.device.type, fused=not in_float64),
        )
    return HeadLoss(statistics, (gradients[0], gradients[1], gradients[2]))


def _check(
    spec: LatentSpec,
    fake: torch.Tensor,
    real: torch.Tensor | None,
    recognition: torch.Tensor | None,
    categories: torch.Tensor | None,
    continuous: torch.Tensor | None,
    code_weights: torch.Tensor | None,
    loss_scale: torch.Tensor | None,
) -> None:
    rows = fake.shape[0] if fake.dim() == 1 else -1
    n_categorical, n_continuous = len(spec.categorical), len(spec.continuous)
    expected: list[tuple[str, torch.Tensor | None, tuple[int, ...], Kind]] = [
        ("fake_logits", fake, (rows,), "floating")
    ]
    if real is not None:
        expected.append(("real_logits", real, (real.shape[0] if real.dim() else -1,), "floating"))
    if recognition is not None:
        expected.append(("recognition", recognition, (rows, spec.head_dim), "floating"))
        expected.append(("categories", categories, (rows, n_categorical), "index"))
        expected.append(("continuous", continuous, (rows, n_continuous), "floating"))
    if code_weights is not None:
        expected.append(("code_weights", code_weights, (n_categorical + n_continuous,), "floating"))
    if loss_scale is not None:
        expected.append(("loss_scale", loss_scale, (), "floating"))
    for name, tensor, shape, kind in expected:
        if tensor is None:
            raise UserError(
                f"head_loss needs {name} of shape {shape} beside recognition: pass the codes that G was fed"
            )
        require("head_loss", name, tensor, shape, fake.device, kind)


def _adversarial_terms(
    fake: torch.Tensor, real: torch.Tensor | None, saturating: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The real term and its gradient, the generated one and its own. d softplus(x) / dx = sigmoid(x)."""
    rows = max(len(fake), 1)
    if real is not None:  # D: -log sigmoid(real) - log(1 - sigmoid(fake))
        real_rows = max(len(real), 1)
        on_real = F.softplus(-real).sum() / real_rows, -torch.sigmoid(-real) / real_rows
        return *on_real, F.softplus(fake).sum() / rows, torch.sigmoid(fake) / rows
    nothing = fake.new_zeros(()), fake.new_empty(0)
    if saturating:  # G: log(1 - sigmoid(fake))
        return *nothing, -F.softplus(fake).sum() / rows, -torch.sigmoid(fake) / rows
    return *nothing, F.softplus(-fake).sum() / rows, -torch.sigmoid(-fake) / rows  # G: -log sigmoid(fake)


def _code_terms(
    q: torch.Tensor,
    categories: torch.Tensor,
    continuous: torch.Tensor,
    weights: torch.Tensor,
    categorical: Sequence[int],
    fixed_std: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """-E[log Q(c|x)] of each code, and the gradient of their weighted sum with respect to ``q``.

    d -log softmax(l)[c] / dl = softmax(l) - one_hot(c); with d = (c - mean) / std, d -log N / d mean = -d / std and
    d -log N / d log_std = 1 - d^2.
    """
    rows, n_continuous = max(len(q), 1), continuous.shape[1]
    logits, mean, raw_log_std = q.split([sum(categorical), n_continuous, n_continuous], dim=1)
    terms: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    for i, of_code in enumerate(logits.split(list(categorical), dim=1) if categorical else ()):
        log_probability, target = F.log_softmax(of_code, dim=1), categories[:, i : i + 1]
        terms.append(-log_probability.gather(1, target).sum() / rows)
        less_one_hot = log_probability.exp().scatter_add(1, target, -torch.ones_like(of_code[:, :1]))
        gradients.append(weights[i] / rows * less_one_hot)

    log_std = torch.zeros_like(mean) if fixed_std else raw_log_std.clamp(min=LOG_STD_MIN)
    inverse_std = torch.exp(-log_std)
    distance = (continuous - mean) * inverse_std
    terms += ((0.5 * distance**2 + log_std + HALF_LOG_2PI).sum(0) / rows).unbind()
    log_std_gradient = 1.0 - distance**2
    stopped = fixed_std | ((raw_log_std < LOG_STD_MIN) & (log_std_gradient > 0))
    weight = weights[len(categorical) :] / rows
    gradients += [-weight * distance * inverse_std, weight * log_std_gradient.masked_fill(stopped, 0.0)]
    return torch.stack(terms) if terms else q.new_empty(0), torch.cat(gradients, dim=1)


def _reference(
    fake_logits: torch.Tensor,
    real_logits: torch.Tensor | None,
    recognition: torch.Tensor | None,
    categories: torch.Tensor | None,
    continuous: torch.Tensor | None,
    code_weights: torch.Tensor | None,
    loss_scale: torch.Tensor | None,
    categorical: Sequence[int],
    entropies: Sequence[float],
    saturating: bool,
    fixed_std: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    work = torch.float64 if fake_logits.dtype == torch.float64 else torch.float32
    device = fake_logits.device
    real = None if real_logits is None else real_logits.to(work)
    real_term, real_gradient, fake_term, fake_gradient = _adversarial_terms(fake_logits.to(work), real, saturating)
    loss = real_term + fake_term
    code_terms = information = q_gradient = loss.new_empty(0)
    if recognition is not None:
        assert categories is not None and continuous is not None
        ones = torch.ones(len(categorical) + continuous.shape[1], dtype=work, device=device)
        weights = ones if code_weights is None else code_weights.to(work)
        code_terms, q_gradient = _code_terms(
            recognition.to(work), categories, continuous.to(work), weights, categorical, fixed_std
        )
        loss = loss + (weights * code_terms).sum()
        information = constant(tuple(entropies), work, device) - code_terms  # H(c) + E[log Q]

    scale = torch.ones((), dtype=work, device=device) if loss_scale is None else loss_scale.to(work)
    return (
        torch.cat([torch.stack([loss, real_term, fake_term]), code_terms, information]),
        (real_gradient * scale).to(fake_logits.dtype if real_logits is None else real_logits.dtype),
        (fake_gradient * scale).to(fake_logits.dtype),
        (q_gradient * scale).to(fake_logits.dtype if recognition is None else recognition.dtype),
    )


@register_op
def _head_loss(
    fake_logits: torch.Tensor,
    real_logits: torch.Tensor | None,
    recognition: torch.Tensor | None,
    categories: torch.Tensor | None,
    continuous: torch.Tensor | None,
    code_weights: torch.Tensor | None,
    loss_scale: torch.Tensor | None,
    categorical: Sequence[int],
    entropies: Sequence[float],
    saturating: bool,
    fixed_std: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    run = implementation("head_loss", backend, _reference)
    return run(
        fake_logits,
        real_logits,
        recognition,
        categories,
        continuous,
        code_weights,
        loss_scale,
        categorical,
        entropies,
        saturating,
        fixed_std,
    )


@torch.library.register_fake("fastinfogan::head_loss")
def _(fake_logits, real_logits, recognition, *rest):  # type: ignore[no-untyped-def]
    entropies = rest[5]
    work = torch.float64 if fake_logits.dtype == torch.float64 else torch.float32
    n_codes = 0 if recognition is None else len(entropies)

    def gradient(of: torch.Tensor | None) -> torch.Tensor:
        return fake_logits.new_empty(0) if of is None else of.new_empty(of.shape)

    return (
        fake_logits.new_empty(3 + 2 * n_codes, dtype=work),
        gradient(real_logits),
        gradient(fake_logits),
        gradient(recognition),
    )


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, real_logits, recognition, *_ = inputs
    ctx.has_real, ctx.has_recognition = real_logits is not None, recognition is not None
    ctx.save_for_backward(*output[1:])


@first_order
def _backward(ctx, grad_statistics, *_):  # type: ignore[no-untyped-def]
    real_gradient, fake_gradient, q_gradient = ctx.saved_tensors
    outer = grad_statistics[0]  # in fp32 or wider: a loss scale of 65536 is beyond float16

    def scaled(gradient: torch.Tensor) -> torch.Tensor:
        return (gradient.to(outer.dtype) * outer).to(gradient.dtype)

    return (
        scaled(fake_gradient),
        scaled(real_gradient) if ctx.has_real else None,
        scaled(q_gradient) if ctx.has_recognition else None,
        *[None] * 9,
    )


torch.library.register_autograd("fastinfogan::head_loss", _backward, setup_context=_setup_context)
