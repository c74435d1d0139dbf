import itertools
import struct
import zlib

import pytest
from pack_files import LENGTH
from pack_files import put_together
from pack_files import take_apart

from packnet_tf import pack_reader
from packnet_tf import pack_writer
from packnet_tf.errors import FileError
from packnet_tf.pack_format import DELTA
from packnet_tf.pack_format import OWNERS
from packnet_tf.pack_format import PACK
from packnet_tf.pack_format import VALUES

DESCRIPTION = {"a": [1, 2.5, None, "ä"]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.packnet"
    with pack_writer.writing(path, PACK, 3) as writer:
        writer.describe(DESCRIPTION)
        writer.section(OWNERS).write(b"owners")
        section = writer.section(VALUES)
        section.write(b"v", b"al")
        section.write(memoryview(b"ues"))
    return path


def read(path, kind, ahead):
    """Reads all; or asserts that what is wrong is found before that."""
    with pack_reader.reading(path, kind, ahead) as reader:
        assert not ahead
        reader.description()
        for each, _ in reader.sections[1:]:
            section = reader.section(each)
            section.read(section.left)
            section.finish()


def refuse(path, words, kind=PACK, ahead=False):
    with pytest.raises(FileError, match=words) as caught:
        read(path, kind, ahead)
    assert "Received: " in str(caught.value)
    assert f"path={str(path)!r}" in str(caught.value)


def described(text, length=None):
    length = len(text) if length is None else length
    return LENGTH.pack(length) + zlib.compress(text)


def test_what_was_written_is_read(path):
    with pack_reader.reading(path, PACK) as reader:
        assert reader.size == path.stat().st_size
        assert [kind for kind, _ in reader.sections] == [1, OWNERS, VALUES]
        assert reader.description() == DESCRIPTION
        section = reader.section(OWNERS)
        assert section.read(6) == b"owners"
        section.finish()
        section = reader.section(VALUES)
        assert section.read(2) + section.read(4) == b"values"


def test_layout_is_as_documented(path):
    content = path.read_bytes()
    assert content[:8] == bytes.fromhex("89 50 41 43 4B 0D 0A 1A")
    assert struct.unpack_from("<HHIQ", content, 8) == (1, 1, 3, len(content))
    kind, sections = take_apart(content)
    assert sections[1:] == [(2, b"owners"), (3, b"values")]
    assert put_together(kind, sections) == content


@pytest.mark.parametrize("ahead", [False, True])
def test_each_flipped_bit_is_found(ahead, path):
    content = path.read_bytes()
    for place, bit in itertools.product(range(len(content)), range(8)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        refuse(path, None, ahead=ahead)


def test_that_a_checksum_fails_is_told_before_what_follows_from_it(path):
    content = path.read_bytes()

    def fail():
        with pack_reader.reading(path, PACK) as reader:
            reader.description()
            raise FileError("A mistake of its own. Received: it")

    for last, words in ((b"s", "of its own"), (b"t", "fails its checksum")):
        path.write_bytes(content[:-1] + last)
        with pytest.raises(FileError, match=words):
            fail()


def test_each_truncation_is_found(path):
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        refuse(path, None)
    path.write_bytes(content + b"\0")
    refuse(path, "its size is another")


def test_newlines_that_were_converted_are_found(path):
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    refuse(path, "This is not a pack file")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "reads version 1.*version=2"),
        ({"kind": DELTA}, "Load this with `packnet_tf.load_task`"),
        ({"kind": 9}, "Update packnet_tf.*kind=9"),
        ({"size": 2**63}, f"expected {2**63}"),
        ({"count": 2**31}, "cannot have so many sections"),
        ({"count": 2}, "fails its checksum"),
    ],
)
def test_another_head_is_refused(path, changes, words):
    kind, sections = take_apart(path.read_bytes())
    path.write_bytes(
        put_together(changes.pop("kind", kind), sections, **changes)
    )
    refuse(path, words)


def test_sections_longer_than_the_file_are_refused(path):
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, 24 + 2 * 16 + 8, 2**62)
    struct.pack_into("<I", content, 24 + 48, zlib.crc32(content[: 24 + 48]))
    path.write_bytes(content)
    refuse(path, "not as long as the file")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (b"", "ends too soon"),
        (LENGTH.pack(2) + b"{}", "is not JSON"),
        (described(b"{}", 3), "has another length"),
        (described(b"{} ", 2), "has another length"),
        (described(b"{}", 2)[:-1], "has another length"),
        (described(b"{}") + b"\0", "has another length"),
        (described(b"{}", 2**60), "may have"),
        (described(bytes((16 << 20) + 1)), "may have"),
        (described(bytes(5 << 20), 5), "has another length"),
        (described(b"[]"), "is not a dict.*list"),
        (described(b"{"), "is not JSON"),
        (described(b"\xff"), "is not JSON"),
        (described(b"[" * 10**5 + b"]" * 10**5), "is not JSON"),
        (described(b'{"a":[' + b"1," * 2**19 + b"1]}"), "may have"),
        (described(b'{"a":' * 10**5), "is not JSON"),
        (described(b'{"a":' + b"9" * 10**5 + b"}"), "is not JSON"),
    ],
)
def test_another_description_is_refused(path, part, words):
    kind, sections = take_apart(path.read_bytes())
    path.write_bytes(put_together(kind, [(1, part), *sections[1:]]))
    refuse(path, words)


def test_sections_come_in_their_order(path):
    with pack_reader.reading(path, PACK) as reader:
        reader.description()
        with pytest.raises(FileError, match="section 1 is out of place"):
            reader.section(VALUES)
        for kind in (OWNERS, VALUES):
            section = reader.section(kind)
            section.read(6)
        with pytest.raises(FileError, match="a section is missing"):
            reader.section(VALUES)


def test_a_section_is_read_to_its_end_and_not_beyond(path):
    with pack_reader.reading(path, PACK) as reader:
        reader.description()
        section = reader.section(OWNERS)
        section.read(5)
        with pytest.raises(FileError, match="a section is too long"):
            section.finish()
        for size in (2, -1):
            with pytest.raises(FileError, match="ends too soon"):
                section.read(size)


def test_a_file_is_written_all_or_nothing(path):
    content = path.read_bytes()
    writing = pack_writer.writing(path, PACK, 2)
    with pytest.raises(ValueError, match="1 of 2 sections"), writing as writer:
        writer.describe({})
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "value", ["a" * (16 << 20), [1] * (1 << 19)], ids="text values".split()
)
def test_a_description_too_long_to_be_read_is_not_written(value, tmp_path):
    with pack_writer.writing(tmp_path / "file", PACK, 1) as writer:
        with pytest.raises(FileError, match="may have"):
            writer.describe({"a": value})
        writer.describe({"a": value[: len(value) // 2]})
    with pack_reader.reading(tmp_path / "file", PACK) as reader:
        assert reader.description() == {"a": value[: len(value) // 2]}


def test_nothing_is_left_of_a_file_that_is_refused(tmp_path):
    with pytest.raises(FileError, match="may have"):
        with pack_writer.writing(tmp_path / "file", PACK, 1) as writer:
            writer.describe({"a": "a" * (16 << 20)})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told(tmp_path):
    with pytest.raises(FileError, match="Cannot write a pack file: No space"):
        with pack_writer.writing(tmp_path / "file", PACK, 1):
            raise OSError(28, "No space left on device")


def test_what_is_no_file_is_refused(tmp_path):
    refuse(tmp_path / "missing", "there is no such file")
    refuse(tmp_path, "it is no file")
    refuse("nul\0", "there is no such file|null")
    with pytest.raises(FileError, match="Cannot open"):
        with pack_reader.reading(None, PACK):
            pass
    for content in (b"", b"PK\3\4" + bytes(100), bytes(8)):
        (tmp_path / "other").write_bytes(content)
        refuse(tmp_path / "other", "This is not a pack file")
        refuse(tmp_path / "other", "This is not a task delta", DELTA)
