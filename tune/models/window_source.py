"""Ray Data's source of windows: one reading task per file. Apart, since its base class needs Ray when it is defined."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask


class WindowSource(Datasource):
    """The windows of files.

    Args:
        files: The files.
        read: Yields the windows of the file with a number, on any node, as rows.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[int], Iterator[Mapping[str, Any]]]) -> None:
        super().__init__()
        self.files, self.read = files, read

    def estimate_inmemory_data_size(self) -> int:
        """Return the size of the files, in bytes."""
        return sum(path.stat().st_size for path in self.files)

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        """Make a task per file.

        Args:
            parallelism: Ray's wish, which is ignored: a file is read by one task.
            *args: Further wishes of Ray.
            **kwargs: The same.
        """
        return [
            ReadTask(
                functools.partial(_blocks, self.read, number),
                BlockMetadata(num_rows=None, size_bytes=path.stat().st_size, exec_stats=None, input_files=(str(path),)),
            )
            for number, path in enumerate(self.files)
        ]


def _blocks(read: Callable[[int], Iterator[Mapping[str, Any]]], file: int) -> Iterator[Any]:
    import pyarrow as pa

    for window in read(file):
        yield pa.table({key: [value] for key, value in window.items()})
