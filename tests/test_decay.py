"""Learning rates that fall: as the schedule says, in the optimisers' own steps, and in replays as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recorder import assert_same_state, captured
from short_runs import MakeConfig, MakeTrainer

from fastinfogan.capture import WARM_UP
from fastinfogan.errors import UserError

ITERATIONS, DECAY = 10, 0.5
FACTORS = [1.0] * 6 + [0.8, 0.6, 0.4, 0.2]  # of the rates, step by step


def test_rates_fall_linearly_to_zero_over_the_last_share_of_the_iterations(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(iterations=ITERATIONS, decay=DECAY, lr_d=1e-3, lr_g=2e-3), tmp_path)
    for step, factor in enumerate(FACTORS):
        made.iteration(step)
        torch.testing.assert_close(made.rates, factor * torch.tensor([1e-3, 2e-3]), check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_optimiser_steps_at_the_rate_of_its_step(
    dtype: torch.dtype, tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    """Against a run whose rates are set by hand before every iteration."""
    scheduled = make_trainer(tiny_config(iterations=ITERATIONS, decay=DECAY), tmp_path / "scheduled", dtype)
    by_hand = make_trainer(tiny_config(iterations=ITERATIONS), tmp_path / "by hand", dtype)
    for step in range(ITERATIONS):
        scheduled.iteration(step)
        for phase, rate in zip(
            (by_hand.discriminator_phase, by_hand.generator_phase), scheduled.rates.tolist(), strict=True
        ):
            phase.optimiser.param_groups[0]["lr"].fill_(rate)
        by_hand.iteration(step)
    assert_same_state(scheduled, by_hand)


def test_replays_follow_the_schedule(tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer) -> None:
    config = tiny_config(iterations=ITERATIONS, decay=DECAY)
    eager = make_trainer(config, tmp_path / "eager")
    graphed, recorder = captured(make_trainer(config, tmp_path / "graphed"))
    for step in range(ITERATIONS):
        eager.iteration(step)
        graphed.iteration(step)
    assert recorder.replays == ITERATIONS - WARM_UP
    assert_same_state(eager, graphed)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_none_and_all(share: float, tiny_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="--decay is a share of the iterations from 0 to 1, got"):
        tiny_config(decay=share).check()
