"""The bytes of an HDF5 file: read by their address, and each used once."""

import itertools
import struct
from typing import BinaryIO


class Bytes:
    """The bytes of an HDF5 file within a file.

    Args:
        file: A file that can be read and sought.
        start: Where in it the HDF5 file begins; addresses count from there.
        size: How many bytes it has.
    """

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.size = size
        self._file, self._start = file, start
        self._taken: list[tuple[int, int]] = []

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
            ValueError: If there are not so many.
        """
        self._check(address + size)
        self._taken.append((address, address + size))

    def check_used_once(self) -> None:
        """Checks that no byte was taken twice.

        Raises:
            ValueError: If one was.
        """
        self._taken.sort()
        for (_, end), (begin, _) in itertools.pairwise(self._taken):
            expect(end <= begin, f"two things share the byte {begin}")

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
