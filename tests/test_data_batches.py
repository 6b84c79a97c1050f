"""The batch of a step is a pure function of the step, however the set is placed and the run is split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import photograph, write_folder

from fastinfogan.data import BatchPlan, Decoded, Encoded, ResidentBatches, StreamBatches, batches, open_batches
from fastinfogan.data.batches import Order, free_bytes
from fastinfogan.data.folder import open_folder
from fastinfogan.errors import UserError

N = 22
CPU = torch.device("cpu")
IMAGE = (3, 16, 16)


def plan(batch: int, **changes: Any) -> BatchPlan:
    return BatchPlan(**{"batch": batch, "seed": 3, "low": -1.0, "high": 1.0, "flip": True, "device": CPU} | changes)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """A folder of photographs, two of them damaged."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    files = {f"{i:02d}.jpg": photograph(i, 60, 50) for i in range(N)} | {"07.jpg": b"", "08.jpg": b"damaged"}
    return open_folder(write_folder(tmp_path_factory.mktemp("photos"), files), "train")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """A folder of photographs without damage."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    files = {f"{i:02d}.jpg": photograph(i, 60, 50) for i in range(N)}
    return open_folder(write_folder(tmp_path_factory.mktemp("whole"), files), "train")


@pytest.fixture
def decoded() -> Decoded:
    """N images that differ in every pixel."""
    return Decoded("made", torch.arange(N * 3 * 16 * 16).view(N, 16, 16, 3).remainder(251).byte())


def stream(encoded: Encoded, batch: int = 4, **others: Any) -> StreamBatches:
    return StreamBatches(encoded, plan(batch, **others), image=IMAGE, reject_limit=0.1)


def test_an_epoch_visits_every_image_once_and_the_next_in_another_order() -> None:
    order = Order(24, plan(4), CPU)
    epochs = [torch.cat([order.at(epoch * 6 + i) for i in range(6)]) for epoch in range(2)]
    assert order.steps_per_epoch == 6
    assert all(torch.equal(epoch.sort().values, torch.arange(24)) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_images_left_over_by_one_epoch_come_in_another() -> None:
    order = Order(N, plan(5), CPU)
    assert order.steps_per_epoch == 4
    assert set(torch.cat([order.at(step) for step in range(40)]).tolist()) == set(range(N))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batch_that_one_rank_would_see(decoded: Decoded, world: int) -> None:
    alone = ResidentBatches(decoded, plan(8))
    ranks = [ResidentBatches(decoded, plan(8 // world, rank=rank, world=world)) for rank in range(world)]
    for step in (0, 1, 2, 7):
        assert torch.equal(alone.at(step), torch.cat([rank.at(step) for rank in ranks]))


def test_streaming_ranks_share_the_batch_that_one_rank_would_see(encoded: Encoded) -> None:
    alone, *ranks = stream(encoded, 8), stream(encoded, rank=0, world=2), stream(encoded, rank=1, world=2)
    for step in (0, 1, 5):
        assert torch.equal(alone.at(step), torch.cat([rank.at(step) for rank in ranks]))


def test_a_stream_gives_what_the_resident_set_gives(whole: Encoded) -> None:
    resident = open_batches(whole, plan(4), image=IMAGE, placement="resident", progress=False)
    streamed = open_batches(whole, plan(4), image=IMAGE, placement="stream")
    assert isinstance(resident, ResidentBatches) and isinstance(streamed, StreamBatches)
    for step in range(resident.order.steps_per_epoch + 2):
        assert torch.equal(resident.at(step), streamed.at(step))
    resident.close()
    streamed.close()


@pytest.mark.parametrize("damaged", [[0], [7, 8], [N - 2, N - 1], [0, 3, 4, N - 1]])
def test_a_stream_gives_what_the_resident_set_gives_where_files_are_damaged(tmp_path: Path, damaged: list[int]) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    files = {f"{i:02d}.jpg": b"damaged" if i in damaged else photograph(i, 20, 20) for i in range(N)}
    opened = open_folder(write_folder(tmp_path, files), "train")
    resident, streamed = (
        open_batches(opened, plan(4), image=IMAGE, placement=placement, reject_limit=0.2, progress=False)  # type: ignore[arg-type]
        for placement in ("resident", "stream")
    )
    assert isinstance(resident, ResidentBatches) and isinstance(streamed, StreamBatches)
    assert len(resident.pixels) == N - len(damaged)
    for step in range(resident.order.steps_per_epoch + 2):
        assert torch.equal(resident.at(step), streamed.at(step))
    resident.close()
    streamed.close()


def test_a_resumed_stream_is_bitwise_the_unbroken_one(encoded: Encoded) -> None:
    unbroken = stream(encoded)
    steps = [unbroken.at(step) for step in range(9)]
    for start in (0, 3, 6):  # each with damage yet to be found
        resumed = stream(encoded)
        for step in range(start, 9):
            assert torch.equal(resumed.at(step), steps[step])
    for step in (8, 2, 3, 0):
        assert torch.equal(unbroken.at(step), steps[step])
    unbroken.close()
    assert torch.equal(unbroken.at(5), steps[5])


def test_a_damaged_file_is_replaced_by_the_next_of_the_set(encoded: Encoded) -> None:
    batches = stream(encoded)
    by_index: dict[int, torch.Tensor] = {}
    for step in range(30):
        pixels = batches.decoder.at(step)
        by_index |= dict(zip(batches.order.at(step).tolist(), pixels.clone(), strict=True))
    assert torch.equal(by_index[7], by_index[9]) and torch.equal(by_index[8], by_index[9])
    assert not torch.equal(by_index[6], by_index[9])
    assert sorted(batches.decoder.rejected) == [7, 8]


def test_a_sequence_is_one_pipeline(whole: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = stream(whole)
    built = []
    build = batches.decoder._build
    monkeypatch.setattr(batches.decoder, "_build", lambda *arguments: built.append(1) or build(*arguments))
    for step in range(12):
        batches.at(step)
    assert len(built) == 1


def test_batches_are_channels_last_float32_in_the_range_asked_for(decoded: Decoded) -> None:
    batches = ResidentBatches(decoded, plan(4, flip=False, low=-2.0, high=5.0))
    images, rows = batches.at(3), batches.order.at(3)
    assert images.shape == (4, *IMAGE) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = decoded.pixels[rows].permute(0, 3, 1, 2).float() * (7 / 255) - 2
    torch.testing.assert_close(images, expected)


def test_a_flip_mirrors_about_half_of_the_images_and_changes_nothing_else(decoded: Decoded) -> None:
    plain, flipped = (ResidentBatches(decoded, plan(N, flip=flip)) for flip in (False, True))
    mirrored = 0
    for step in range(10):
        for one, other in zip(plain.at(step), flipped.at(step), strict=True):
            mirrored += not torch.equal(one, other)
            assert torch.equal(one, other) or torch.equal(one.flip(2), other)
    assert 70 < mirrored < 150  # of 220


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_a_batch_larger_than_the_set_is_told_before_decoding(
    whole: Encoded, placement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "decode_all", lambda *_, **__: pytest.fail("decoded first"))
    with pytest.raises(UserError, match="a batch of 4 is larger than the set of 1 images: give it more images"):
        batches.require_whole_batch(1, 2, world=2)
    with pytest.raises(UserError, match="a batch of 24 is larger than the set of 22 images: choose --batch 22 or less"):
        open_batches(whole, plan(12, world=2), image=IMAGE, placement=placement)


def test_auto_is_resident_up_to_a_quarter_of_the_free_memory(
    whole: Encoded, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = N * 3 * 16 * 16
    for free, kind in ((4 * needed, ResidentBatches), (4 * needed - 1, StreamBatches)):
        monkeypatch.setattr(batches, "free_bytes", lambda device, free=free: free)
        assert isinstance(open_batches(whole, plan(4), image=IMAGE, progress=False), kind)
        assert isinstance(open_batches(decoded, plan(4), image=IMAGE), ResidentBatches)
    page = os.sysconf("SC_PAGE_SIZE")
    assert os.sysconf("SC_AVPHYS_PAGES") * page / 2 < free_bytes(CPU) < os.sysconf("SC_PHYS_PAGES") * page


def test_a_set_published_decoded_is_not_streamed(decoded: Decoded) -> None:
    with pytest.raises(
        UserError, match="made is published decoded and cannot be streamed: choose --placement resident"
    ):
        open_batches(decoded, plan(4), image=IMAGE, placement="stream")


@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_every_step_reads_the_same_memory(whole: Encoded, decoded: Decoded, kind: str) -> None:
    """A captured graph reads where it read while it was captured, in every epoch."""
    batches = ResidentBatches(decoded, plan(4)) if kind == "resident" else stream(whole)
    before = [tensor.data_ptr() for tensor in batches.static()]
    for step in range(2 * batches.order.steps_per_epoch + 1):
        batches.at(step)
    assert [tensor.data_ptr() for tensor in batches.static()] == before
    batches.close()


def test_the_step_is_read_on_the_device(decoded: Decoded) -> None:
    """One tensor that counts gives the batch of every step, once the host has prepared it."""
    batches, clock = ResidentBatches(decoded, plan(4, rank=1, world=2)), torch.tensor(0)
    for step in range(7):  # an epoch is two
        batches.prepare(step)
        images = batches.images(clock)
        clock += 1
        assert torch.equal(images, batches.at(step))


def test_the_path_of_a_set_on_the_disk_may_be_a_zip(whole: Encoded, tmp_path: Path) -> None:
    from image_files import write_zip

    files = {Path(name).name: whole.read(i) for i, name in enumerate(whole.names)}
    zipped = open_folder(write_zip(tmp_path / "photos.zip", files), "train")
    assert torch.equal(stream(zipped).at(2), stream(whole).at(2))
