"""The claim about classes that are not equally frequent: a prior that is learnt against the uniform one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from bench.claims.claim import Claim, Number
from bench.claims.report import dotted
from fastinfogan import data
from fastinfogan.config import PRESETS
from fastinfogan.data import Decoded, Split, idx

RAREST = 0.1  # of the images of digit 9 that are kept; of digit 0 all, falling geometrically in between
PREFIXES: tuple[tuple[Split, str], ...] = (("train", "train"), ("test", "t10k"))


def kept(labels: torch.Tensor) -> torch.Tensor:
    """Indices of the images that stay: of digit d the first ``RAREST ** (d / 9)`` of them, in their order."""
    stay = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        rows = (labels == digit).nonzero()[:, 0]
        stay[rows[: round(len(rows) * RAREST ** (digit / 9))]] = True
    return stay.nonzero()[:, 0]


def prepare(root: Path, quick: bool) -> Path:
    """MNIST's files with fewer of the higher digits, where the set of the same format that nothing verifies lies."""
    out = root / "drawn" / "imbalanced-mnist"
    folder = out / "fashion-mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for split, prefix in PREFIXES:
        opened = data.open_split("mnist", root, split, (1, 28, 28), tables="mnist")
        assert isinstance(opened, Decoded) and opened.labels is not None
        rows = kept(opened.labels)
        pixels, labels = opened.pixels[rows, :, :, 0].numpy(), opened.labels[rows].byte().numpy()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx.encode(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx.encode(labels))
    return out


# A learnt prior follows one head, so both variants have but one.
_CONFIG = replace(PRESETS["mnist"], rivals=0, dataset="fashion-mnist", iterations=1500)
_NUMBERS = (
    Number("clusterings/c1/nmi", "NMI"),
    Number("frequencies/c1/distance", "distance to the true frequencies"),
    Number("clusterings/c1/error", "test error", percent=True),
    Number("information/c1", "I(c1), nats"),
)


CLAIMS = {
    "imbalanced": Claim(
        question="Classes of unequal frequency: does a learnt prior find them?",
        protocol=(
            "MNIST with all zeros and a tenth of the nines, geometrically in between, in both splits; the quick start "
            "of one head with and without --learn-prior. Distance: half the sum of absolute differences between the "
            "frequencies of the values and of the labels that they are matched to (total variation)."
        ),
        variants={"learnt prior": replace(_CONFIG, learn_prior=True), "uniform prior": _CONFIG},
        seeds=(0, 1, 2),
        groups=("information", "clustering"),
        numbers=_NUMBERS,
        draw=dotted(_NUMBERS),
        prepare=prepare,
    )
}
