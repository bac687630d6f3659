"""Many texts in the room that their bytes take: a million strings of Python's would be some 130 MB of objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from transferctl.scratch import Growing

PACKED_AT_ONCE = 4096


class Texts:
    """Texts in order, any that Python has (names of files may be no Unicode). They are packed as they come."""

    def __init__(self, texts: Iterable[str]):
        blob, ends = Growing(np.uint8), Growing(np.int64)
        texts, end = iter(texts), 0
        while encoded := [text.encode("utf-8", "surrogatepass") for text in islice(texts, PACKED_AT_ONCE)]:
            blob.append(b"".join(encoded))
            ends.append(end + np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded))))
            end += sum(map(len, encoded))
        self._blob, self._ends = blob.array(), ends.array()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._blob[start : self._ends[index]].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


def packed(texts: Iterable[str] | Texts) -> Texts:
    return texts if isinstance(texts, Texts) else Texts(texts)
