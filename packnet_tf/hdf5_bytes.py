"""The bytes of an HDF5 file: read by their address, and each used once."""

import array
import struct
from typing import BinaryIO

import numpy as np


class Bytes:
    """The bytes of an HDF5 file within a file.

    What is taken never adds up to more than the file has. So whatever is
    taken before it is looked at takes time and memory in proportion to the
    file, however often the file leads to the same place.

    Args:
        file: A file that can be read and sought.
        start: Where in it the HDF5 file begins; addresses count from there.
        size: How many bytes it has.
    """

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.size = size
        self._file, self._start = file, start
        self._begins, self._ends = array.array("Q"), array.array("Q")
        self._taken = 0

    def read(self, address: int, size: int) -> bytes:
        """Reads some bytes.

        Args:
            address: Where they begin.
            size: How many.

        Returns:
            The bytes.

        Raises:
            ValueError: If there are not so many.
        """
        self._check(address + size)
        self._file.seek(self._start + address)
        content = self._file.read(size)
        expect(len(content) == size, "it is cut off")
        return content

    def unpack(self, layout: struct.Struct, address: int) -> tuple:
        """Reads some fields.

        Args:
            layout: What they are.
            address: Where they begin.

        Returns:
            The values.

        Raises:
            ValueError: If there are not so many bytes.
        """
        return layout.unpack(self.read(address, layout.size))

    def take(self, address: int, size: int) -> None:
        """Notes that some bytes have their use.

        Args:
            address: Where they begin.
            size: How many.

        Raises:
            ValueError: If there are not so many, or some must have been
                taken before.
        """
        self._check(address + size)
        self._taken += size
        expect(self._taken <= self.size, "two things share some bytes")
        self._begins.append(address)
        self._ends.append(address + size)

    def check_used_once(self) -> None:
        """Checks that no byte was taken twice.

        Raises:
            ValueError: If one was.
        """
        begins, ends = np.array(self._begins), np.array(self._ends)
        order = np.lexsort((ends, begins))
        begins, ends = begins[order][1:], ends[order][:-1]
        shared = begins[ends > begins]
        expect(not shared.size, f"two things share the bytes {shared[:1]}")

    def _check(self, end: int) -> None:
        expect(end <= self.size, f"it leads to byte {end}, which it has not")


def expect(condition: object, otherwise: str) -> None:
    """Refuses a file.

    Args:
        condition: What is true of a file that is whole.
        otherwise: What is wrong with it else.

    Raises:
        ValueError: If it is not true.
    """
    if not condition:
        raise ValueError(otherwise)
