"""An iteration is Algorithm 1, draws what its step says, and waits for nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from short_runs import MakeConfig, MakeTrainer, fp16_trains_here, quiet
from torch.utils._python_dispatch import TorchDispatchMode

from fastinfogan import Latents, trainer
from fastinfogan.ops import LOG_STD_MIN, philox
from fastinfogan.precision import Precision
from fastinfogan.trainer import Trainer

CPU = torch.device("cpu")


def test_everything_that_draws_has_a_stream_of_its_own(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTINFOGAN_BACKEND", "reference")  # which draws through this function alone
    streams, rounds = [], philox.philox
    monkeypatch.setattr(
        philox, "philox", lambda key, counter: (streams.append(int(counter[3]) >> 24), rounds(key, counter))[1]
    )
    make_trainer(tiny_config(invariance=1.0, learn_prior=True), tmp_path).iteration(0)
    assert sorted(streams) == [philox.LATENTS, philox.SHUFFLE, philox.FLIPS, philox.WARPS, philox.PRIORS]


def test_both_optimisers_have_the_betas_of_the_configuration(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(beta1=0.3, beta2=0.8), tmp_path)
    for phase in (made.discriminator_phase, made.generator_phase):
        assert [group["betas"] for group in phase.optimiser.param_groups] == [(0.3, 0.8)]


def test_the_generator_runs_once_per_iteration(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(), tmp_path)
    calls = {"generator": 0, "trunk": 0}
    for name, module in (("generator", made.generator), ("trunk", made.discriminator.trunk)):
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    made.iteration(0)
    assert calls == {"generator": 1, "trunk": 2}  # real images and detached fakes, then fakes through the new D


class Watch(TorchDispatchMode):
    """Notes the gradients that convolutions and matrix products compute, and refuses what waits for the device."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "item")

    def __init__(self) -> None:
        super().__init__()
        self.weight_gradients: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} waits for the device"
        if name == "convolve_gradient" or (name == "convolution_backward" and args[10][1]):
            self.weight_gradients.append(name)
        return func(*args, **(kwargs or {}))


def test_d_gets_no_weight_gradient_in_the_g_phase(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(), tmp_path)
    made.iteration(0)
    images, latents = made.batches.at(1), made.draw(1)
    fakes = made.generator(latents.z)
    made.discriminator_phase.update(images, fakes.detach(), latents)
    for parameter in made.discriminator.parameters():
        parameter.grad = None
    before = {name: tensor.clone() for name, tensor in made.discriminator.named_parameters()}
    with Watch() as watch:
        made.generator_phase.update(fakes, latents)
    assert len(watch.weight_gradients) == 2  # the generator's two transposed convolutions, none of D's
    assert all(parameter.grad is None and parameter.requires_grad for parameter in made.discriminator.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.discriminator.named_parameters())
    assert all(parameter.grad is not None for parameter in made.generator.parameters())


@pytest.mark.parametrize("trunk_mi", [True, False])
def test_every_weight_is_moved_by_exactly_one_optimiser(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, trunk_mi: bool
) -> None:
    made = make_trainer(tiny_config(trunk_mi=trunk_mi), tmp_path)
    phases = (made.discriminator_phase, made.generator_phase)
    moved = [id(p) for phase in phases for group in phase.optimiser.param_groups for p in group["params"]]
    every = [id(p) for module in (made.generator, made.discriminator) for p in module.parameters()]
    assert sorted(moved) == sorted(every)


@contextlib.contextmanager
def no_host_reads() -> Iterator[None]:
    """Whatever would read a tensor on the host raises."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"):

            def refuse(*_: Any, name: str = name, **__: Any) -> None:
                raise AssertionError(f"Tensor.{name} waits for the device")

            patch.setattr(torch.Tensor, name, refuse)
        yield


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"invariance": 1.0},
        {"invariance": 1.0, "learn_prior": True},
        {"invariance": 1.0, "rivals": 2, "iterations": 40},  # rounds, from 6 on, are between iterations
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nothing_in_an_iteration_reads_a_tensor_on_the_host(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    if dtype == torch.float16 and not fp16_trains_here():
        pytest.skip("this CPU has no float16 convolutions")
    made = make_trainer(tiny_config(**changes), tmp_path, dtype)
    with no_host_reads():
        for step in range(6):  # an epoch is five
            with Watch() if step else contextlib.nullcontext():
                made.iteration(step)
    assert made.metrics.count == 6


def nll(recognition: torch.Tensor, latents: Any) -> torch.Tensor:
    """-E[log Q] of Categorical(10) and Uniform(2), by torch.distributions."""
    mean, log_std = recognition[:, 10:12], recognition[:, 12:14].clamp(min=LOG_STD_MIN)
    normal = torch.distributions.Normal(mean, log_std.exp())
    category = torch.distributions.Categorical(logits=recognition[:, :10])
    return -category.log_prob(latents.categories[:, 0]).mean() - normal.log_prob(latents.continuous).sum(1).mean()


@pytest.mark.parametrize("trunk_mi", [True, False])
def test_an_iteration_is_algorithm_1_written_out(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, trunk_mi: bool
) -> None:
    config = tiny_config(trunk_mi=trunk_mi)
    made, plain = (make_trainer(config, tmp_path / name) for name in ("made", "plain"))
    g, d = plain.generator, plain.discriminator
    heads = {True: (d.recognition_head, None), False: (None, d.recognition_head)}[trunk_mi]
    groups = [[d.trunk, d.adversarial_head, heads[0]], [g, heads[1]]]
    # a large eps, or Adam turns rounding noise in a gradient near zero into a whole step
    adams = [
        torch.optim.Adam([p for m in modules if m for p in m.parameters()], lr=lr, betas=(0.5, 0.999), eps=1e-2)
        for modules, lr in zip(groups, (config.lr_d, config.lr_g), strict=True)
    ]
    for phase in (made.discriminator_phase, made.generator_phase):
        phase.optimiser.param_groups[0]["eps"] = 1e-2
    bce = F.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(config.batch), torch.zeros(config.batch)
    for step in range(3):
        made.iteration(step)
        images, latents = plain.batches.at(step), plain.draw(step)
        fakes = g(latents.z)
        real, _ = d(images) if trunk_mi else (d.adversarial(d.features(images)), None)
        features = d.features(fakes.detach())
        loss = bce(real, ones) + bce(d.adversarial(features), zeros)
        if trunk_mi:
            loss = loss + nll(d.recognition(features), latents)
        adams[0].zero_grad()
        loss.backward()
        adams[0].step()
        fake, recognition = d(fakes)  # through the D that has just moved
        adams[1].zero_grad()
        (bce(fake, ones) + nll(recognition, latents)).backward()
        adams[1].step()
    for module, twin in ((made.generator, g), (made.discriminator, d)):
        for (name, tensor), other in zip(module.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(tensor, other, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_targets_of_q_are_what_the_generator_saw(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_trainer(tiny_config(), tmp_path)
    fed: list[torch.Tensor] = []
    targets: list[Latents] = []

    def find(arguments: tuple[Any, ...]) -> list[Latents]:
        return [one for one in arguments if isinstance(one, Latents)]

    made.generator.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].clone()))
    for phase in (made.discriminator_phase, made.generator_phase):
        update = phase.update
        monkeypatch.setattr(phase, "update", lambda *a, _u=update: (targets.extend(find(a)), _u(*a))[1])
    made.iteration(0)
    (z,) = fed
    assert len(targets) == 2
    for latents in targets:
        assert torch.equal(z[:, made.spec.one_hot_columns(0)].argmax(1), latents.categories[:, 0])
        assert torch.equal(z[:, made.spec.continuous_columns], latents.continuous)


def test_latents_of_a_step_are_a_function_of_seed_and_step(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    one = make_trainer(tiny_config(), tmp_path / "one")
    same = make_trainer(tiny_config(), tmp_path / "same")
    other = make_trainer(tiny_config(seed=4), tmp_path / "other")
    same.iteration(0)
    assert torch.equal(one.draw(5).z, same.draw(5).z)
    assert not torch.equal(one.draw(5).z, one.draw(6).z) and not torch.equal(one.draw(5).z, other.draw(5).z)


def test_precision_of_a_trainer_is_the_one_it_was_given(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(), tmp_path, torch.bfloat16)
    assert made.precision == Precision(CPU, torch.bfloat16, "the test asks for it")
    seen: list[torch.dtype] = []
    made.discriminator.adversarial_head.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    made.iteration(0)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in (*made.generator.parameters(), *made.discriminator.parameters())} == {torch.float32}


def next_update(made: Trainer, network: str) -> torch.Tensor:
    """What Adam would move ``network`` by, were the gradient to stay: all moments in one vector, in float64."""
    optimiser = getattr(made, f"{network}_phase").optimiser
    (group,) = optimiser.param_groups
    moments = [
        (optimiser.state[p]["exp_avg"].double(), optimiser.state[p]["exp_avg_sq"].double()) for p in group["params"]
    ]
    return torch.cat([(mean / (square.sqrt() + group["eps"])).flatten() for mean, square in moments])


@pytest.mark.slow
def test_compiled_networks_train_as_the_plain_ones(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Trainer:
        config = tiny_config(iterations=4, log_every=2, save_every=2, figure_every=3, **changes)
        made = make_trainer(config, tmp_path / name)
        for phase in (made.discriminator_phase, made.generator_phase):
            phase.optimiser.param_groups[0]["eps"] = 1e-2  # or Adam turns rounding noise into a whole step
        for network in (made.generator, made.discriminator):
            network.to(dtype)
        made.generator.register_forward_pre_hook(lambda _, inputs: tuple(x.to(dtype) for x in inputs))
        made.train(quiet)
        return made

    plain, compiled = trained("plain"), trained("compiled", compile=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 4, "the networks were not compiled"
    wanted = plain.state()
    for name, tensor in compiled.state().items():
        if ".exp_avg" not in name:
            torch.testing.assert_close(
                tensor, wanted[name], rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )
    assert compiled.generator.state_dict().keys() == plain.generator.state_dict().keys()
    # A moment sums what cancels, and its rounding is as large as the terms': held against what PyTorch's own errs by.
    monkeypatch.setattr(trainer, "use_matrices", lambda *_: None)
    stock, exact = trained("stock"), trained("exact", torch.float64)
    for network in ("generator", "discriminator"):
        truth = next_update(exact, network)
        errors = [(next_update(made, network) - truth).norm() for made in (compiled, stock)]
        assert errors[0] <= 2 * errors[1], (network, errors)
