"""JPEG and PNG files to uint8 pixels of the networks' size, through NVIDIA DALI.

One pipeline serves two jobs: decoding a whole set once into a store, and decoding the batch of any step. It is fed by
``external_source`` from a plan (batch number -> indices) instead of a DALI reader, because the plan is a pure function:
the shuffle is as deep as the set, the same for any number of ranks, and an exact resume needs no state of DALI's.

A DALI pipeline dies of the first file it cannot decode. Then the files it held are tried one by one, those at fault
are rejected, and a new pipeline goes on from the same batch. DALI itself is the judge, not a second decoder: they
differ over damaged files, and a verdict must not depend on which other files were in the batch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.dlpack
from tqdm import tqdm

from fastinfogan.data.split import Decoded, Encoded, Image, Rejected
from fastinfogan.errors import UserError

STORE_BATCH = 64  # large enough to keep the threads busy, small enough for photographs of 20 megapixels
PREFETCH = 2
MAX_THREADS = 8

Bytes = npt.NDArray[np.uint8]


class Decoder:
    """Pixels of the batches of a plan, decoded ahead while they are asked for in sequence.

    ``plan(k)`` gives the int64 indices of batch k, at most ``batch`` of them, for every k >= 0. A file that cannot be
    decoded is replaced by the next one of the set that can, so batch k is the same whenever it is asked for.
    Raises :class:`UserError` when DALI is missing or more than the share ``reject_limit`` of the set (at least one
    file) was rejected.
    """

    def __init__(
        self,
        encoded: Encoded,
        image: Image,
        *,
        device: torch.device,
        batch: int,
        plan: Callable[[int], torch.Tensor],
        reject_limit: float,
    ) -> None:
        self.encoded, self.image, self.device, self.batch, self.plan = encoded, image, device, batch, plan
        self.most_rejected = max(1, int(reject_limit * len(encoded)))
        self.rejected: dict[int, Rejected] = {}
        self._pipeline: Any = None
        self._next = self._planned = 0

    def at(self, k: int) -> torch.Tensor:
        """Pixels of batch ``k``: uint8 [rows, H, W, C] on the device, valid until garbage-collected."""
        while True:
            if self._pipeline is None or k != self._next:
                self._pipeline, self._next = self._build(self.batch, lambda i: self._window(k + i)), k
            try:
                (images,) = self._run(self._pipeline)
            except RuntimeError:
                self.close()
                ahead = torch.cat([self.plan(i) for i in range(k, self._planned + 1)])
                suspects = dict(self._file(index) for index in ahead.tolist())
                with _quiet():
                    culprits = self._culprits(list(suspects.items()))
                if not culprits:
                    raise  # no file is at fault
                for index, content in culprits:
                    self._reject(index, _reason(content))
                continue
            self._next += 1
            return torch.utils.dlpack.from_dlpack(images.as_tensor())

    def close(self) -> None:
        """Give DALI's threads and buffers back; the next ``at`` builds a new pipeline."""
        self._pipeline = None

    def _window(self, k: int) -> list[Bytes]:
        self._planned = k
        return [self._file(index)[1] for index in self.plan(k).tolist()]

    def _file(self, index: int) -> tuple[int, Bytes]:
        """Number and bytes of file ``index``, or of the first one after it that has not been rejected."""
        while True:
            while index in self.rejected:
                index = (index + 1) % len(self.encoded)
            try:
                if content := self.encoded.read(index):
                    return index, np.frombuffer(content, np.uint8)
                self._reject(index, "the file is empty")
            except OSError as error:
                self._reject(index, str(error))

    def _culprits(self, files: list[tuple[int, Bytes]]) -> list[tuple[int, Bytes]]:
        """Those of ``files`` that DALI cannot decode, found by halving."""
        try:
            self._build(len(files), lambda _: [content for _, content in files]).run()
        except RuntimeError:
            if len(files) == 1:
                return files
            half = len(files) // 2
            return self._culprits(files[:half]) + self._culprits(files[half:])
        return []

    def _reject(self, index: int, reason: str) -> None:
        rejected = self.rejected[index] = Rejected(self.encoded.names[index], " ".join(reason.split()))
        tqdm.write(f"rejected {rejected.name}: {rejected.reason}", file=sys.stderr)
        if len(self.rejected) > self.most_rejected or len(self.rejected) == len(self.encoded):
            raise UserError(
                f"{len(self.rejected):,} of {len(self.encoded):,} files of {self.encoded.name} cannot be decoded, at "
                f"most {self.most_rejected:,} may be, the last is {rejected.name} ({rejected.reason}): repair or "
                f"delete the files named above, or raise --reject-limit"
            )

    def _build(self, batch: int, files: Callable[[int], list[Bytes]]) -> Any:
        """A pipeline whose i-th run decodes ``files(i)``, at most ``batch`` files."""
        fn, math, pipeline_def, types = _dali()
        height, width = self.image[1:]
        on_gpu = self.device.type == "cuda"

        @pipeline_def(
            batch_size=batch,
            num_threads=_threads(),
            device_id=torch.empty(0, device=self.device).get_device() if on_gpu else None,
            prefetch_queue_depth=PREFETCH,
        )
        def pixels() -> Any:
            encoded = fn.external_source(
                source=lambda info: files(info.iteration),
                batch=True,
                batch_info=True,
                dtype=types.UINT8,
                ndim=1,
            )
            height_width = fn.slice(fn.peek_image_shape(encoded, adjust_orientation=False), 0, 2, axes=[0])
            side = fn.reductions.min(height_width)
            if self.encoded.crop:
                side = math.min(side, self.encoded.crop)
            # only the crop is decoded; the camera's orientation mark is left alone, or the shape above would not hold
            square = fn.decoders.image_slice(
                encoded,
                (height_width - side) // 2,
                fn.stack(side, side),
                axes=[0, 1],
                device="mixed" if on_gpu else "cpu",
                output_type=types.GRAY if self.image[0] == 1 else types.RGB,
                adjust_orientation=False,
            )
            return fn.resize(square, size=[height, width], interp_type=types.INTERP_TRIANGULAR, antialias=True)

        pipeline = pixels()
        pipeline.build()
        return pipeline

    def _run(self, pipeline: Any) -> Any:
        """One run; on a GPU its result is ordered on PyTorch's stream, so that the host does not wait for it."""
        return pipeline.run(torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None)


def decode_all(
    encoded: Encoded,
    image: Image,
    device: torch.device,
    *,
    reject_limit: float = 0.01,
    progress: bool = True,
    keep: bool = True,
) -> Decoded:
    """The whole set decoded once: pixels uint8 [n - rejected, H, W, C] on the host, mapped from a file where possible.

    The file lies in ``.fastinfogan`` beside the data and is found again as long as names, sizes and dates of the set,
    the crop and the size are the same. When several processes ask at once, one decodes and the others wait. A folder
    that cannot be written costs a notice, and the pixels stay in memory, as they do without ``keep``.
    Raises :class:`UserError` as ``Decoder``.
    """
    shape = (len(encoded), *image[1:], image[0])
    key = hashlib.sha256(f"{encoded.fingerprint} {encoded.crop} {image}".encode()).hexdigest()[:16]
    base = encoded.home / ".fastinfogan" / f"{encoded.name}-{key}"
    part = base.with_suffix(".part")
    pixels = None
    with contextlib.ExitStack() as cleanup:
        if keep:
            try:
                cleanup.enter_context(_locked(base.parent))
                if (stored := _load(encoded.name, base)) is not None:
                    return stored
                cleanup.callback(part.unlink, missing_ok=True)
                pixels = _allocate(part, shape)
            except OSError as error:
                print(f"notice: decoded images stay in memory, {base.parent} cannot be used ({error})", file=sys.stderr)
                keep = False
        if pixels is None:
            pixels = np.empty(shape, np.uint8)
        count, rejected = _fill(pixels, encoded, image, device, reject_limit, progress)
        if keep:
            record = {"count": count, "rejected": [[one.name, one.reason] for one in rejected]}
            base.with_suffix(".json").write_text(json.dumps(record))
            with part.open("rb") as file:
                os.fsync(file.fileno())  # or a power cut could leave the name without the pixels
            part.rename(base.with_suffix(".npy"))  # last: its presence says that all is complete
    return Decoded(encoded.name, torch.from_numpy(pixels[:count]), rejected=rejected)


def _fill(
    pixels: npt.NDArray[np.uint8],
    encoded: Encoded,
    image: Image,
    device: torch.device,
    reject_limit: float,
    progress: bool,
) -> tuple[int, tuple[Rejected, ...]]:
    n = len(encoded)
    batches = -(-n // STORE_BATCH)

    def plan(k: int) -> torch.Tensor:
        first = k % batches * STORE_BATCH  # past the end DALI prefetches the beginning again, and nobody takes it
        return torch.arange(first, min(first + STORE_BATCH, n))

    decoder = Decoder(encoded, image, device=device, batch=STORE_BATCH, plan=plan, reject_limit=reject_limit)
    count = 0
    with tqdm(total=n, desc=f"decoding {encoded.name}", unit=" images", disable=not progress) as bar:
        for k in range(batches):
            decoded = decoder.at(k).cpu().numpy()
            rows = plan(k).tolist()
            good = decoded[[row for row, index in enumerate(rows) if index not in decoder.rejected]]
            pixels[count : count + len(good)] = good
            count += len(good)
            bar.update(len(rows))
    decoder.close()
    return count, tuple(decoder.rejected[index] for index in sorted(decoder.rejected))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _allocate(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:  # a full disk is told now, and not by a bus error while the map is written
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return pixels


def _load(name: str, base: Path) -> Decoded | None:
    store, record = base.with_suffix(".npy"), base.with_suffix(".json")
    if not (store.exists() and record.exists()):
        return None
    content = json.loads(record.read_text())
    pixels = np.load(store, mmap_mode="c")[: content["count"]]  # "c": PyTorch wants to be able to write, the file stays
    return Decoded(name, torch.from_numpy(pixels), rejected=tuple(Rejected(*one) for one in content["rejected"]))


def _reason(content: Bytes) -> str:
    """What another decoder says about a file that DALI refused: DALI gives no reason."""
    from PIL import Image as Picture
    from PIL import UnidentifiedImageError

    try:
        picture = Picture.open(io.BytesIO(content.tobytes()))
        picture.load()
    except UnidentifiedImageError:
        return f"not an image, it starts with {content[:8].tobytes().hex(' ')}"
    except Exception as error:  # a damaged file can make PIL raise nearly anything
        return str(error)
    return f"DALI cannot decode this {picture.format}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what the C++ libraries print to nowhere: the search for a damaged file makes them repeat one complaint."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def _threads() -> int:
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _dali() -> tuple[Any, Any, Any, Any]:
    try:
        from nvidia.dali import fn, math, pipeline_def, types
    except ImportError as error:
        raise UserError(
            f"decoding image files needs NVIDIA DALI ({error}): pip install nvidia-dali-cuda130, or run "
            f"--dataset mnist, which needs none"
        ) from None
    return fn, math, pipeline_def, types
