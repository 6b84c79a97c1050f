"""A run's configuration: one flat dataclass, the paper's experiments as presets of it, and how config.json is read.

tyro turns the dataclass into flags with help and pydantic reads ``config.json`` back into it, so a field written here
is a flag, a default, a line of the help and a key of the file at once.
"""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import pydantic

from fastinfogan.capture import Capture
from fastinfogan.codes import LatentSpec, Prior, parse_code
from fastinfogan.data.batches import Placement
from fastinfogan.errors import UserError
from fastinfogan.networks import TABLES, Tables, TablesName
from fastinfogan.objective import Objective

MOST_RIVALS = 1_000  # more take minutes to build, and learn nothing that fewer do not

DatasetName = Literal["mnist", "fashion-mnist", "svhn", "celeba", "faces", "chairs", "dsprites", "folder"]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes and where it writes."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    dataset: DatasetName = "mnist"
    """Which images to learn from; 'folder' takes JPEG and PNG files from --data, a folder, a zip or a tar."""
    data: Path = Path("data")
    """Where the data sets lie or are fetched to; for 'folder', the images themselves (its preset: images/)."""
    placement: Placement = "auto"
    """Hold the images decoded on the training device, or stream them through DALI; auto holds what fits."""
    gray: bool = False
    """Turn colour images to grey, for networks of one channel."""
    invert: bool = False
    """Exchange black and white on the way into the networks and out again, for images on white: their ground becomes 0,
    with which convolutions pad."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    reject_limit: float = 0.01
    """Share of the image files that may be undecodable and are skipped; above it the run stops."""

    tables: TablesName = "mnist"
    """Networks: the paper's Table 1 (mnist), 2 (svhn), 3 (celeba), 4 (faces) or 6 (chairs); celeba-64, dsprites."""
    spectral_norm: bool = False
    """Not the paper's: give D and Q weights of spectral norm 1 instead of batch norm."""
    noise: int = 62
    """Columns of the incompressible noise z."""
    codes: tuple[str, ...] = ("cat:10", "uniform:2")
    """The latent code, any mix of cat:K, uniform:N and gaussian:N; called c1, c2, ... with the categories first."""
    noise_prior: Prior = "uniform"
    """Prior of z: uniform on (-1, 1) or standard normal."""
    learn_prior: bool = False
    """Learn how frequent each category is, for classes of unequal frequency; needs --invariance. Off: uniform."""

    categorical_weight: float = 1.0
    """Lambda of the mutual information of categorical codes."""
    continuous_weight: float = 1.0
    """Lambda of the mutual information of continuous codes."""
    trunk_mi: bool = True
    """Give the trunk shared by D and Q the gradient of the mutual information."""
    generator_mi: bool = True
    """Give G the gradient of the mutual information; without it and without --trunk-mi, Q observes a plain GAN."""
    fixed_std: bool = False
    """Fix the std of Q's Gaussians at 1 instead of learning it."""
    q_share: float = 1.0
    """Part of the categorical weight that Q and the trunk learn with; G has all of it. 0: real images alone teach Q."""
    saturating: bool = False
    """Let G minimise log(1 - D), the paper's Eq. 1, instead of -log D."""
    invariance: float = 0.0
    """Not the paper's: weight of Q's categories agreeing on a real image and its warp, all of them in equal use."""
    rivals: int = 0
    """Not the paper's: more recognition heads; at five points in the run the best becomes Q's. Needs --invariance."""

    iterations: int = 2000
    """Iterations; each updates D, Q and G once on one batch."""
    batch: int = 128
    """Images per iteration, over all processes."""
    lr_d: float = 2e-4
    """Adam's learning rate for D (and for Q with --trunk-mi)."""
    lr_g: float = 1e-3
    """Adam's learning rate for G (and for Q without --trunk-mi)."""
    decay: float = 0.0
    """Share of the iterations, at the end, over which both learning rates fall linearly to 0."""
    beta1: float = 0.5
    """Adam's decay of the first moment."""
    beta2: float = 0.999
    """Adam's decay of the second moment."""

    amp: bool = False
    """Mixed precision: bfloat16 or float16 where the device has it in hardware; the choice is printed."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    capture: Capture = "auto"
    """Replay iterations as one CUDA graph where the device is a GPU; off runs them op by op."""
    compile: bool = False
    """Compile the networks with torch.compile: minutes at the start, fewer passes over memory after it."""
    sync_batch_norm: bool = True
    """With several processes, norm over the global batch, as one process would; else each over its own rows."""
    seed: int = 0
    """64-bit seed of weights, latents and data order."""

    log_every: int = 50
    """Iterations between two readings of the metrics."""
    figure_every: int = 500
    """Iterations between two sets of figures."""
    evaluate_every: int = 0
    """Iterations between two evaluations beside training, logged as eval/...; 0: only the one at the end."""
    save_every: int = 500
    """Iterations between two checkpoints."""
    keep: int = 2
    """Checkpoints kept; older ones are removed."""
    run_dir: Path | None = None
    """Where the run is written; a new folder below runs/ where none is given."""

    @property
    def spec(self) -> LatentSpec:
        """The latents that ``noise``, ``codes``, ``noise_prior`` and ``learn_prior`` describe."""
        return LatentSpec(
            self.noise, tuple(parse_code(code) for code in self.codes), self.noise_prior, self.learn_prior
        )

    @property
    def network_tables(self) -> Tables:
        """The tables that ``tables`` names, with ``spectral_norm``, ``rivals`` and ``invert``."""
        return replace(TABLES[self.tables], spectral=self.spectral_norm, rivals=self.rivals, inverted=self.invert)

    @property
    def objective(self) -> Objective:
        """The switches and weights of both phases."""
        return Objective(
            categorical_weight=self.categorical_weight,
            continuous_weight=self.continuous_weight,
            trunk_mi=self.trunk_mi,
            generator_mi=self.generator_mi,
            fixed_std=self.fixed_std,
            q_share=self.q_share,
            saturating=self.saturating,
            invariance=self.invariance,
        )

    def check(self) -> None:
        """Raise a UserError for the first value that cannot work, before anything is read or written."""
        _ = self.spec
        for name in ("data", "run_dir"):
            try:
                str(getattr(self, name)).encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"{_flag(name)} {os.fsencode(getattr(self, name))!r} is no UTF-8, which config.json and the "
                    f"checkpoints are written in: rename the folder, or give a link to it"
                ) from None
        for name in ("iterations", "log_every", "figure_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be 1 or more, got {getattr(self, name)}")
        if self.iterations >= 1 << 63:
            raise UserError(f"--iterations are counted in 64 bits, below 2**63, got {self.iterations}")
        if self.evaluate_every < 0:
            raise UserError(f"--evaluate-every must be 0 (never) or more, got {self.evaluate_every}")
        if self.batch < 2:
            raise UserError(f"--batch must be 2 or more, got {self.batch}: batch norm needs images to compare")
        self._check_objective()
        for name in ("lr_d", "lr_g"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{_flag(name)} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.decay <= 1:
            raise UserError(f"--decay is a share of the iterations from 0 to 1, got {self.decay}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be at least 0 and below 1, got {getattr(self, name)}")
        require_reject_limit(self.reject_limit)
        require_seed(self.seed)

    def _check_objective(self) -> None:
        """The weights, and what the terms need of each other."""
        for name in ("categorical_weight", "continuous_weight", "invariance"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(
                    f"{_flag(name)} must be 0 or more, got {getattr(self, name)}: "
                    f"a negative weight would teach G to hide its code"
                )
        if self.invariance and not self.trunk_mi:
            raise UserError(
                f"--invariance {self.invariance} moves Q and the trunk in the D phase: "
                f"add --trunk-mi, or give --invariance 0"
            )
        if (self.invariance or self.q_share != 1) and not self.spec.categorical:
            raise UserError(
                f"--invariance {self.invariance} and --q-share {self.q_share} are about categories, and --codes "
                f"{' '.join(self.codes) or '(none)'} has no cat:K: add --invariance 0 --rivals 0 --q-share 1"
            )
        if self.rivals < 0:
            raise UserError(f"--rivals is a number of heads, 0 or more, got {self.rivals}")
        if self.rivals > MOST_RIVALS:
            raise UserError(f"--rivals is a number of heads, {MOST_RIVALS} at most, got {self.rivals}")
        if self.rivals and not self.invariance:
            raise UserError(
                f"--rivals {self.rivals} are judged by the invariance term: add --invariance 4, or leave out --rivals"
            )
        if self.learn_prior and not self.invariance:
            raise UserError(
                "--learn-prior follows Q's categories on real images, which only the invariance term holds together: "
                "add --invariance 2, or leave out --learn-prior"
            )
        if self.learn_prior and self.rivals:
            raise UserError(
                "--learn-prior follows the categories of one head, and another one's have other names: give --rivals 0"
            )
        if not 0 <= self.q_share <= 1:
            raise UserError(f"--q-share is a share from 0 to 1, got {self.q_share}")
        if self.q_share == 0 and not self.invariance:
            raise UserError(
                "--q-share 0 leaves Q's categories nothing to learn from but the invariance term: add --invariance 4, "
                "or give --q-share 1"
            )
        if self.q_share != 1 and not self.trunk_mi:
            raise UserError(
                f"--q-share {self.q_share} is for a Q that learns in the D phase: add --trunk-mi, or give --q-share 1"
            )


def require_reject_limit(share: float) -> None:
    """Raise a UserError where ``--reject-limit`` is no share."""
    if not 0 <= share <= 1:
        raise UserError(f"--reject-limit is a share from 0 to 1, got {share}")


def require_seed(seed: int) -> None:
    """Raise a UserError where ``--seed`` is no number of 64 bits."""
    if not 0 <= seed < 1 << 64:
        raise UserError(f"--seed must be 0 to 2**64 - 1, got {seed}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# The quick start is not the paper's run: its differences, each said in the README, make the categories digits sooner.
_MNIST = TrainConfig(
    continuous_weight=0.1, q_share=0.0, invariance=4.0, rivals=7, lr_d=5e-4, decay=1.0, iterations=1000
)
_FACES = TrainConfig(dataset="faces", tables="faces", noise=128, codes=("uniform:5",), gray=True, iterations=20_000)
_CHAIRS = TrainConfig(
    dataset="chairs", tables="chairs", noise=128, codes=("cat:20", "cat:20", "cat:20", "uniform:1"), gray=True,
    iterations=20_000,
)  # fmt: skip
_CELEBA = TrainConfig(
    dataset="celeba", tables="celeba", noise=128, codes=("cat:10",) * 10, iterations=20_000, save_every=1000,
    figure_every=1000,
)  # fmt: skip

# Faces and Chairs: one preset for each variation of the paper's Tables 5 and 7.
_VARIATIONS = {
    "faces-azimuth": replace(_FACES, lr_d=2e-4, lr_g=5e-4, continuous_weight=0.2),
    "faces-elevation": replace(_FACES, lr_d=4e-4, lr_g=3e-4, continuous_weight=0.1),
    "faces-lighting": replace(_FACES, lr_d=8e-4, lr_g=3e-4, continuous_weight=0.1),
    # the main text (7.2) says 4 categorical codes; appendix C says 3 and 189 inputs, which 4 would not give: C it is
    "chairs-rotation": replace(_CHAIRS, lr_d=2e-4, lr_g=1e-3, continuous_weight=10.0, categorical_weight=1.0),
    "chairs-width": replace(_CHAIRS, lr_d=2e-4, lr_g=1e-3, continuous_weight=0.05, categorical_weight=2.0),
}

# Appendix C of the paper; what is not the paper's says so.
PRESETS: dict[str, TrainConfig] = {
    "mnist": _MNIST,
    "mnist-paper": TrainConfig(iterations=23_450, fixed_std=True, figure_every=2345, save_every=2345),
    "fashion-mnist": replace(_MNIST, dataset="fashion-mnist"),
    # the main text (7.2) says 2 continuous codes; appendix C says 4 and 168 inputs, which 2 would not give: C it is
    "svhn": TrainConfig(
        dataset="svhn", tables="svhn", noise=124, codes=("cat:10",) * 4 + ("uniform:4",), iterations=20_000
    ),
    "celeba": _CELEBA,
    "celeba-64": replace(_CELEBA, tables="celeba-64"),  # not the paper's: the same codes at 64x64
    # not the paper's either: on drawn faces Table 3 with batch norm draws nothing (bench/NOTES.md)
    "folder": replace(_CELEBA, dataset="folder", data=Path("images"), spectral_norm=True),  # data/ holds the others
    **_VARIATIONS,
    "faces": _VARIATIONS["faces-azimuth"],  # what --dataset alone gives: the first variation of each table
    "chairs": _VARIATIONS["chairs-rotation"],
    # not the paper's: Lin et al. 2020's InfoGAN, a continuous code for each of the five factors
    "dsprites": TrainConfig(
        dataset="dsprites",
        tables="dsprites",
        spectral_norm=True,
        noise=5,
        codes=("uniform:5",),
        fixed_std=True,
        continuous_weight=0.05,
        batch=64,
        lr_d=2e-3,
        iterations=20_000,
        save_every=5000,
        figure_every=5000,
    ),
}


def preset(name: str) -> TrainConfig:
    """The preset of that name; the data set's name is the name of its default preset.

    Raises:
        UserError: no such preset, with the nearest name.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown data set or preset {name!r}: {hint}choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def to_json(config: TrainConfig) -> str:
    """The whole resolved configuration, as ``config.json`` holds it."""
    return json.dumps(asdict(config), indent=2, default=str) + "\n"


def from_json(text: str, source: str) -> TrainConfig:
    """The configuration in ``text``; ``source`` names it in errors.

    Raises:
        UserError: text that is no JSON, an unknown key, or a value of the wrong kind.
    """
    try:
        return pydantic.TypeAdapter(TrainConfig).validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"cannot use {source}: {where}: {first['msg']} (got {str(first['input'])[:60]!r})") from None


def read_config(path: Path) -> TrainConfig:
    """The configuration in the file ``path``, or in the ``config.json`` of the run folder ``path``."""
    file = path / "config.json" if path.is_dir() else path
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the configuration {file}: {error}; give a run folder or its config.json"
        ) from None
    return from_json(text, str(file))
