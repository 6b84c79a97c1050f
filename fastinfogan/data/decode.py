"""JPEG and PNG files to uint8 pixels of the networks' size, through NVIDIA DALI.

One pipeline serves two jobs: decoding a whole set once into a store, and decoding the batch of any step. It is fed by
``external_source`` from a plan (batch number -> indices) instead of a DALI reader, because the plan is a pure function:
the shuffle is as deep as the set, the same for any number of ranks, and an exact resume needs no state of DALI's.

A DALI pipeline dies of the first file it cannot decode. Then those at fault among the files it held are found by
halving and rejected, and a new pipeline goes on from the same batch. DALI itself is the judge, not a second decoder:
they differ over damaged files, and a verdict must not depend on which other files were in the batch. Only what a
file's first bytes say of its size is looked at before, see :mod:`fastinfogan.data.header`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from fastinfogan.data import store
from fastinfogan.data.header import Refused, require_decodable
from fastinfogan.data.split import Decoded, Encoded, ImageShape, Rejected
from fastinfogan.errors import UserError

STORE_BATCH = 64  # large enough to keep the threads busy, small enough for photographs of 20 megapixels
PREFETCH = 2
MAX_THREADS = 8
# In the key of a store, so that none is found again whose pictures were not turned upright, or decoded otherwise.
RULES = "upright, one decoder"

Bytes = npt.NDArray[np.uint8]  # of a file, or the pixels of pictures


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
        image: ImageShape,
        *,
        device: torch.device,
        batch: int,
        plan: Callable[[int], torch.Tensor],
        reject_limit: float,
    ) -> None:
        self.encoded, self.image, self.device, self.batch, self.plan = encoded, image, device, batch, plan
        self.reject_limit = reject_limit
        self.rejected: dict[int, Rejected] = {}
        self._pipeline: Any = None
        self._next = self._planned = 0

    def at(self, k: int) -> torch.Tensor:
        """Pixels of batch ``k``: uint8 [rows, H, W, C] on the device."""
        images = self._decoded(k)
        return self._copied(images, torch.empty(images.shape(), dtype=torch.uint8, device=self.device))

    def fill(self, pixels: torch.Tensor, k: int) -> None:
        """Write what :meth:`at` returns into ``pixels``; on a GPU in the order of PyTorch's stream."""
        self._copied(self._decoded(k), pixels)

    def _copied(self, images: Any, pixels: torch.Tensor) -> torch.Tensor:
        """DALI's ``images`` in ``pixels``. They are not lent to PyTorch: the thread with which DALI takes a loan back
        waits for the whole GPU, which would break the capture of a graph."""
        from nvidia.dali.plugin.pytorch import feed_ndarray

        feed_ndarray(images, pixels, cuda_stream=self._stream())
        return pixels

    def _decoded(self, k: int) -> Any:
        """Batch ``k`` as a tensor of DALI's."""
        while True:
            if self._pipeline is None or k != self._next:
                self._pipeline, self._next = self._build(self.batch, lambda i: self._window(k + i)), k
            try:
                (images,) = self._run(self._pipeline)
            except RuntimeError as error:
                failure = error.with_traceback(None)  # which would keep the pipeline and its memory
            else:
                self._next += 1
                return images.as_tensor()
            self.close()
            self._reject_culprits(k, failure)

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
                content = self.encoded.read(index)
                require_decodable(content, self.encoded.names[index])
                return index, np.frombuffer(content, np.uint8)
            except (OSError, Refused) as error:
                self._reject(index, str(error), unread=isinstance(error, OSError))

    def _reject_culprits(self, k: int, failure: RuntimeError) -> None:
        """Reject what DALI cannot decode of batch ``k`` and those read ahead; where it is none, raise ``failure``."""
        culprits = []
        for i in range(k, self._planned + 1):
            suspects = dict(self._file(index) for index in self.plan(i).tolist())
            with _quiet():
                culprits += self._culprits(list(suspects.items()))
        if not culprits:
            raise failure
        for index, content in dict(culprits).items():
            self._reject(index, _reason(content))

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

    def _reject(self, index: int, reason: str, unread: bool = False) -> None:
        rejected = self.rejected[index] = Rejected(self.encoded.names[index], " ".join(reason.split()), unread)
        _tell(rejected)
        require_few(self.encoded, _reasons(self.rejected), self.reject_limit)

    def _build(self, batch: int, files: Callable[[int], list[Bytes]]) -> Any:
        """A pipeline whose i-th run decodes ``files(i)``, at most ``batch`` files."""
        fn, math, pipeline_def, types = _dali()
        height, width = self.image[1:]
        on_gpu = self.device.type == "cuda"

        @pipeline_def(
            batch_size=batch,
            num_threads=decoder_threads(),
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
            height_width = fn.slice(fn.peek_image_shape(encoded, adjust_orientation=True), 0, 2, axes=[0])
            side = fn.reductions.min(height_width)
            if self.encoded.crop:
                side = math.min(side, self.encoded.crop)
            # only the crop is decoded, of the picture turned as the camera's mark says, as its shape above is
            square = fn.decoders.image_slice(
                encoded,
                (height_width - side) // 2,
                fn.stack(side, side),
                axes=[0, 1],
                device="mixed" if on_gpu else "cpu",
                # Of a GPU: chroma as the CPU enlarges it, and one kind of decoder whatever else is in the batch.
                jpeg_fancy_upsampling=True,
                hw_decoder_load=0.0,
                output_type=types.GRAY if self.image[0] == 1 else types.RGB,
                adjust_orientation=True,
            )
            return fn.resize(square, size=[height, width], interp_type=types.INTERP_TRIANGULAR, antialias=True)

        pipeline = pixels()
        pipeline.build()
        return pipeline

    def _run(self, pipeline: Any) -> Any:
        """One run; on a GPU its result is ordered on PyTorch's stream, so that the host does not wait for it."""
        return pipeline.run(self._stream())

    def _stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None


def decode_all(
    encoded: Encoded,
    image: ImageShape,
    device: torch.device,
    *,
    reject_limit: float = 0.01,
    progress: bool = True,
    keep: bool = True,
    verify: bool = False,
) -> Decoded:
    """The whole set decoded once: pixels uint8 [n - rejected, H, W, C] on the host, mapped from a file where possible.

    The file lies in ``.fastinfogan`` beside the data and is found again as long as names, sizes and dates of the set,
    the crop, the size and ``RULES`` are the same and none of its files can be read that could not be before, see
    :func:`fastinfogan.data.store.keep`; without ``keep`` there is none. ``verify`` reads a finished file and makes it
    anew where a hash disagrees. Raises :class:`UserError` as ``Decoder``.
    """
    stored = store.keep(
        encoded.name,
        encoded.home,
        f"{RULES} {encoded.fingerprint} {encoded.crop}",
        (len(encoded), *image[1:], image[0]),
        _blocks(encoded, image, device, reject_limit),
        progress=progress,
        verify=verify,
        on_disk=keep,
        outdated=lambda rejected: any(one.unread and readable(encoded, index) for index, one in rejected.items()),
    )
    require_few(encoded, _reasons(stored.rejected), reject_limit, tell=True)  # the file may be of a higher limit
    lost = sorted(stored.rejected)
    kept = np.delete(np.arange(len(encoded)), lost)
    return Decoded(
        encoded.name,
        torch.from_numpy(stored.pixels),
        rejected=tuple(stored.rejected[index] for index in lost),
        factors=encoded.factors.rows(torch.from_numpy(kept)) if encoded.factors else None,
        lost=tuple(lost),
    )


def _blocks(encoded: Encoded, image: ImageShape, device: torch.device, reject_limit: float) -> store.Blocks:
    n = len(encoded)
    batches = -(-n // STORE_BATCH)
    per_block = store.BLOCK // STORE_BATCH

    def plan(k: int) -> torch.Tensor:
        first = k % batches * STORE_BATCH  # past the end DALI prefetches the beginning again, and nobody takes it
        return torch.arange(first, min(first + STORE_BATCH, n))

    def blocks(first: int, rejected: dict[int, Rejected]) -> Iterator[tuple[Bytes, dict[int, Rejected]]]:
        decoder = Decoder(encoded, image, device=device, batch=STORE_BATCH, plan=plan, reject_limit=reject_limit)
        decoder.rejected = rejected
        for block in range(first, -(-n // store.BLOCK)):
            parts: list[Bytes] = []
            lost: dict[int, Rejected] = {}
            for k in range(block * per_block, min((block + 1) * per_block, batches)):
                decoded = decoder.at(k).cpu().numpy()
                rows = plan(k).tolist()
                parts.append(decoded[[row for row, index in enumerate(rows) if index not in decoder.rejected]])
                lost |= {index: decoder.rejected[index] for index in rows if index in decoder.rejected}
            yield np.concatenate(parts), lost
        decoder.close()

    return blocks


def readable(encoded: Encoded, index: int) -> bool:
    """Whether the file of image ``index`` can be read."""
    try:
        encoded.read(index)
    except OSError:
        return False
    return True


def _tell(rejected: Rejected) -> None:
    tqdm.write(f"rejected {rejected.name}: {rejected.reason}", file=sys.stderr)


def _reasons(rejected: dict[int, Rejected]) -> dict[int, str]:
    return {index: one.reason for index, one in rejected.items()}


def require_few(encoded: Encoded, rejected: dict[int, str], reject_limit: float, *, tell: bool = False) -> None:
    """Raise :class:`UserError` when more than the share ``reject_limit``, and more than one, or all are rejected.

    rejected: why, by image. tell: name them first, as nothing else has.
    """
    most = max(1, int(reject_limit * len(encoded)))
    if len(rejected) > most or len(rejected) == len(encoded):
        for index, reason in rejected.items() if tell else ():
            _tell(Rejected(encoded.names[index], reason))
        last, reason = list(rejected.items())[-1]
        raise UserError(
            f"{len(rejected):,} of {len(encoded):,} files of {encoded.name} cannot be decoded, at most {most:,} may "
            f"be, the last is {encoded.names[last]} ({reason}): repair or delete the files named above, or raise "
            f"--reject-limit"
        )


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


def decoder_threads() -> int:
    """The threads that a pipeline of this process decodes with: its share of the cores, at most MAX_THREADS."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _dali() -> tuple[Any, Any, Any, Any]:
    try:
        from nvidia.dali import fn, math, pipeline_def, types
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C while its modules were loaded
            raise KeyboardInterrupt from None
        raise UserError(
            f"decoding image files needs NVIDIA DALI ({error}): pip install nvidia-dali-cuda130, or run "
            f"--dataset mnist, which needs none"
        ) from None
    return fn, math, pipeline_def, types
