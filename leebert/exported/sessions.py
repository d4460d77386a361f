"""ONNX Runtime sessions of an exported model's segments, checked before anything of them is loaded."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leebert.errors import CheckpointError, ConfigError, DataError
from leebert.exported.cpu import lacks_eight_bit
from leebert.exported.graphs import check_graph
from leebert.exported.manifest import ADVICE, Manifest, Segment, verified

log = logging.getLogger(__name__)

#: NumPy's types of the inputs of a graph, by ONNX Runtime's names.
_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class SegmentSession:
    """One segment, loaded.

    Args:
        folder: The folder of the exported model.
        manifest: Its manifest.
        segment: The segment.
        options: ONNX Runtime's session options.

    Raises:
        CheckpointError: The file was altered, has what :func:`leebert.exported.graphs.check_graph` refuses, or cannot be loaded.
    """

    def __init__(self, folder: Path, manifest: Manifest, segment: Segment, options: Any) -> None:
        import onnxruntime

        self.segment, self.file = segment, folder / segment.file
        data = verified(folder, segment.file, manifest)
        check_graph(data, str(self.file))
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            made = f"exported with onnxruntime {manifest.made_with.onnxruntime}, this is {onnxruntime.__version__}"
            raise CheckpointError(f"{self.file} can't be loaded ({made}): {error}; {ADVICE}") from None
        # It would keep a second copy of the weights, to start again with other providers.
        vars(self._session).pop("_model_bytes", None)
        inputs = {one.name: _TYPES.get(one.type) for one in self._session.get_inputs()}
        outputs = {one.name for one in self._session.get_outputs()}
        if set(inputs) != set(segment.inputs) or outputs != set(segment.outputs):
            raise CheckpointError(f"{self.file}: its inputs and outputs are not those of the manifest; {ADVICE}")
        self._types = inputs

    def run(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the segment.

        Args:
            values: At least its inputs, by name; the first dimension is the sample.

        Returns:
            Its outputs by name.

        Raises:
            DataError: ONNX Runtime cannot run these inputs.
        """
        feeds = {}
        for name, dtype in self._types.items():
            value = values[name]
            feeds[name] = value if dtype is None or value.dtype == dtype else value.astype(dtype)
        try:
            outputs = self._session.run(self.segment.outputs, feeds)
        except Exception as error:
            raise DataError(f"{self.file} can't run this batch: {error}") from None
        return dict(zip(self.segment.outputs, outputs, strict=True))


def load_sessions(folder: Path, manifest: Manifest, threads: int) -> list[SegmentSession]:
    """Load all segments of an exported model.

    Args:
        folder: Its folder.
        manifest: Its manifest.
        threads: Threads of ONNX Runtime for one batch.

    Returns:
        One session per segment, in order.

    Raises:
        ConfigError: The number of threads is below 1, onnxruntime is not installed, or the model has another target.
        CheckpointError: As :class:`SegmentSession`.
    """
    if threads < 1:
        raise ConfigError(f"threads {threads}: should be at least 1")
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("exported models need onnxruntime: pip install 'leebert-sweep[serve]'") from None
    if manifest.target != "onnx":
        raise ConfigError(f"{folder}: made for {manifest.target}, which this version can't run; export it --to onnx")
    _warn(folder, manifest, onnxruntime.__version__)
    options = _options(threads)
    return [SegmentSession(folder, manifest, segment, options) for segment in manifest.segments]


def _options(threads: int) -> Any:
    """Session options: one batch runs its segments one after the other, so that they share the threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    # Threads of a session that has run would wait in a loop while the next segment's session runs on the same cores: with 2
    # threads on 2 busy cores, a batch of 1 then takes 7 times the processor time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A pattern would reserve the activations of each shape of a batch in one block, beside the blocks of other shapes: with it,
    # six int8 segments of 22 MB and a batch of 32 texts take 191 MB, without 163 MB, in the same time within 1 %.
    options.enable_mem_pattern = False
    _share_memory()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@functools.cache
def _share_memory() -> None:
    """Let all sessions of this process take memory from one arena.

    With an arena each, six int8 segments of 22 MB hold 642 MB after a batch of 32 × 128 tokens, with a shared one 270 MB, in
    the same time; without arenas 204 to 258 MB, in 10 % more time.
    """
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    with contextlib.suppress(Exception):  # another library of this process has registered one, which serves as well
        onnxruntime.create_and_register_allocator(memory, None)


def _warn(folder: Path, manifest: Manifest, version: str) -> None:
    """Warn about another version of ONNX Runtime, and about a CPU on which 8-bit integers are slow and can saturate."""
    made = manifest.made_with.onnxruntime
    if made != version:
        log.warning(
            "%s was exported with onnxruntime %s, and this is %s: scores and times can differ", folder, made, version
        )
    if manifest.precision != "fp32" and lacks_eight_bit():
        log.warning(
            "this CPU has no instructions for 8-bit integers (VNNI): %s (%s) runs slower here than where it has, and sums of "
            "products can saturate; check its scores on this machine",
            folder, manifest.precision,
        )  # fmt: skip
