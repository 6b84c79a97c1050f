"""The statistics of a run's iterations, summed on the device and read at the logging interval only."""

from __future__ import annotations

import torch

from fastinfogan.distributed import ALONE, Ranks

SUMS = ("loss/d", "loss/g")  # of the other losses


class Metrics:
    """Sums of the statistics of every iteration, on the device, with the first step at which each was not finite.

    The statistics are means over this process's rows; what is read is over all processes, which read together.
    """

    def __init__(self, names: list[str], device: torch.device, ranks: Ranks = ALONE) -> None:
        self.names = names
        self.ranks = ranks
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.first_bad = torch.zeros(len(names), dtype=torch.int64, device=device)

    def add(self, step: int | torch.Tensor, statistics: torch.Tensor) -> None:
        """``statistics``: one value per name; ``step``: an integer, or a scalar on the device."""
        self.sums += statistics
        self.count += 1
        newly_bad = ~torch.isfinite(statistics) & (self.first_bad == 0)
        # Not masked_fill_: on a GPU that reads the value on the host.
        self.first_bad.copy_(torch.where(newly_bad, step + 1, self.first_bad))

    def share(self) -> None:
        """Make the sums the means over all processes, in each of them; once more changes nothing."""
        self.ranks.average_(self.sums)

    def first_not_finite(self) -> tuple[str, int] | None:
        """The name and step (counted from 1) of the earliest value that was not finite. Waits for the device.

        A term is named rather than the sum that it is part of.
        """
        never = torch.iinfo(torch.int64).max
        earliest = self.first_bad.masked_fill(self.first_bad == 0, never)
        self.ranks.least_(earliest)
        steps = [step % never for step in earliest.tolist()]
        bad = [(step, name in SUMS, index) for index, (name, step) in enumerate(zip(self.names, steps, strict=True))]
        step, _, index = min((one for one in bad if one[0]), default=(0, False, 0))
        return (self.names[index], step) if step else None

    def read(self) -> dict[str, float]:
        """Means since the last reading, which start anew. Waits for the device."""
        self.share()
        means = (self.sums / self.count).tolist()
        self.sums.zero_()
        self.count.zero_()
        return dict(zip(self.names, means, strict=True))

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps: float64 ``sums`` [n_names] and their ``count``."""
        return {"sums": self.sums, "count": self.count}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` gave, where it is of as many names."""
        own = self.state()
        # Else another objective is resumed: its means start here.
        if all(name in tensors and tensors[name].shape == kept.shape for name, kept in own.items()):
            for name, kept in own.items():
                kept.copy_(tensors[name])
