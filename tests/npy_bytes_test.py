import io

import numpy as np
import pytest
from loading import npy_bytes


def saved(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        np.array([-1, 1 << 40]),
        np.array(["a", "bird"]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_what_numpy_saves_comes_back(array):
    found = npy_bytes.decode(saved(array), "x.npy")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "x.npy with the header b''"),
        (saved(np.zeros(3)), "x.npy with the header"),
        (saved(np.zeros(3, np.uint8))[:-1], r"of shape \(3,\), uint8, 2 bytes"),
        (saved(np.zeros(3, np.uint8)) + b"\0", "4 bytes"),
        (saved(np.zeros(0, np.uint8)), "0 bytes"),
        (saved(np.zeros(3, np.uint8)).replace(b"(3,)", b"(f,)"), "header"),
        (
            saved(np.zeros((1, 1), np.uint8)).replace(
                b"(1, 1), ", b"(999999999, 999999999), "
            ),
            "header|999999999",
        ),
    ],
    ids="nothing floats short long empty code huge".split(),
)
def test_a_header_that_does_not_fit_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        npy_bytes.decode(content, "x.npy")
