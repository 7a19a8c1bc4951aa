"""Nothing damaged gets in: files that are cut, zeroed, flipped, swapped or longer than before.

The witness is Pillow itself, and for bands that Pillow does not know, tifffile. Where Pillow
decodes other pixels than were written although the format's own checksum is wrong, we refuse the
file; the witness there is the checksum.
"""

import io
import random
import struct
import time
import tracemalloc
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from sureclr.data import decoding, pillow_rasters
from sureclr.data.decoding import DecodedPicture, Decoding, FileRef
from sureclr.data.rasters import Unreadable

MUTANTS = 2000
WANTED = Decoding(16, whole_side=24)
DAMAGED = "its pixels are damaged (a checksum is wrong)"


def scene(bands: int = 3, side: int = 40) -> Any:
    """Smooth and noisy parts, so that every part of a decoder is used."""
    pixels = np.add.outer(np.arange(side), 2 * np.arange(side + 9))[..., None]
    scene = (pixels * np.arange(1, bands + 1) % 256).astype(np.uint8)
    noise = np.random.default_rng(bands).integers(0, 256, (20, 20, bands), dtype=np.uint8)
    scene[10:30, 10:30] = noise
    return scene


def file(form: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(scene())).save(buffer, form, **options)
    return buffer.getvalue()


def bands_file(**options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        scene(7).astype(np.uint16) * 200,
        photometric="minisblack",
        planarconfig="contig",
        rowsperstrip=16,
        **options,
    )
    return buffer.getvalue()


GREY_16 = Image.fromarray(scene(1)[..., 0].astype(np.uint16) * 200)
FILES = {
    "PNG": file("PNG"),
    "PNG of 16 bits": file("PNG", GREY_16),
    "PNG with a palette": file("PNG", Image.fromarray(scene()).quantize(64)),
    "PNG with alpha": file("PNG", Image.fromarray(scene(4))),
    "JPEG": file("JPEG", exif=Image.Exif()),
    "progressive JPEG": file("JPEG", progressive=True),
    "TIFF": file("TIFF"),
    "TIFF, deflate": file("TIFF", compression="tiff_deflate"),
    "TIFF, deflate, 16 bits": file("TIFF", GREY_16, compression="tiff_deflate"),
    "TIFF, LZW": file("TIFF", compression="tiff_lzw"),
    "TIFF, packbits": file("TIFF", compression="packbits"),
    "TIFF, JPEG": file("TIFF", compression="jpeg"),
    "TIFF, fax": file("TIFF", Image.fromarray(scene()).convert("1"), compression="group4"),
    "JPEG 2000": file("JPEG2000"),
    "GIF": file("GIF"),
    "WebP": file("WEBP"),
    "lossless WebP": file("WEBP", lossless=True),
    "AVIF": file("AVIF", speed=10),
    "BMP": file("BMP"),
    "PPM": file("PPM"),
    "TGA": file("TGA", compression="tga_rle"),
    "ICO": file("ICO"),
    "SGI": file("SGI"),
    "PCX": file("PCX"),
}


def mutant(data: bytes, source: random.Random) -> bytes:
    """The file with one kind of damage."""
    damaged, length = bytearray(data), len(data)
    place, other = source.randrange(length), source.randrange(length)
    kind = source.randrange(5)
    if kind == 0:
        del damaged[max(1, place) :]
    elif kind == 1:
        damaged[place : place + length // 10] = bytes(len(damaged[place : place + length // 10]))
    elif kind == 2:
        for _ in range(source.choice((1, 1, 2, 8))):
            damaged[source.randrange(length)] ^= 1 << source.randrange(8)
    elif kind == 3:
        damaged[place], damaged[other] = damaged[other], damaged[place]
    else:
        damaged[place:place] = source.randbytes(source.choice((1, 4, 20)))
    return bytes(damaged)


def pillow_reads(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
            image.convert("RGB")
        except Exception:
            return False
    return True


def inflated(parts: list[bytes]) -> bool:
    """Whether zlib finds the data complete and without a fault."""
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(b"".join(parts))
    except zlib.error:
        return False
    return inflate.eof


def png_pixels(data: bytes) -> tuple[list[bytes], bool]:
    """The compressed pixels of a PNG, and whether their sums are right but for a few bits."""
    place, parts, right = 8, [], True
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        if kind == b"IDAT":
            parts.append(data[place + 8 : place + 8 + length])
            stored = data[place + 8 + length :][:4]
            wrong = int.from_bytes(stored, "big") ^ zlib.crc32(kind + parts[-1])
            right &= len(stored) < 4 or wrong.bit_count() <= 8
        elif parts:
            break
        place += 12 + length
    return parts, right


def a_checksum_is_wrong(data: bytes) -> bool:
    """Whether zlib itself finds pixels of a PNG or a deflated TIFF damaged, which Pillow reads."""
    if data.startswith(b"\x89PNG"):
        parts, right = png_pixels(data)
        return not (right and inflated(parts))
    tags: Any = Image.open(io.BytesIO(data)).tag_v2  # type: ignore[attr-defined]
    strips = zip(tags[273], tags[279], strict=False)
    return not all(inflated([data[start : start + length]]) for start, length in strips)


@pytest.fixture(scope="module")
def verdicts() -> Iterator[list[tuple[str, bool, Any, bool]]]:
    """For each mutant: name, whether Pillow reads it, our result, whether a sum is wrong."""
    found = []
    for number in range(MUTANTS):
        name = list(FILES)[number % len(FILES)]
        data = mutant(FILES[name], random.Random(number))
        result = decoding.decode(FileRef("a", data=data), WANTED)
        reads = pillow_reads(data)
        wrong = reads and result == DAMAGED and a_checksum_is_wrong(data)
        found.append((name, reads, result, wrong))
    yield found


def test_pillow_and_we_agree_on_every_mutant(verdicts: Any, capfd: Any) -> None:
    disagreements = [
        (number, name, reads, result)
        for number, (name, reads, result, wrong) in enumerate(verdicts)
        if isinstance(result, DecodedPicture) != (reads and not wrong)
    ]
    assert disagreements == []


def test_the_mutants_are_a_fair_mixture(verdicts: Any) -> None:
    """Of every format some are refused, and of most some are read: the test above can fail."""
    refused = Counter(name for name, reads, _, _ in verdicts if not reads)
    assert set(refused) == set(FILES)
    assert 400 < sum(refused.values()) < 1600
    assert 10 < sum(wrong for *_, wrong in verdicts) < 100


def test_refused_files_print_nothing(capfd: Any) -> None:
    for name in ("TIFF, deflate", "TIFF, fax", "JPEG 2000", "AVIF"):
        for seed in range(20):
            decoding.decode(FileRef("a", data=mutant(FILES[name], random.Random(seed))), WANTED)
    assert capfd.readouterr() == ("", "")


def test_lines_that_a_decoder_writes_are_counted(capfd: Any) -> None:
    """This fax has wrong code words, which libtiff reports on stderr and then goes on."""
    data = bytearray(FILES["TIFF, fax"])
    counts = []
    for place in range(8, 200, 7):
        data[place] ^= 4
        result = decoding.decode(FileRef("a", data=bytes(data)), WANTED)
        assert capfd.readouterr() == ("", "")
        if pillow_reads(bytes(data)) and isinstance(result, DecodedPicture):
            lines = capfd.readouterr().err.splitlines()
            counts.append((result.complaints, len(lines)))
        data[place] ^= 4
        capfd.readouterr()
    assert counts and any(ours for ours, _ in counts)
    assert all(ours == theirs for ours, theirs in counts)


def test_bands_that_pillow_does_not_know_are_whole_or_refused() -> None:
    """The witness is tifffile: what it refuses is refused; what we read is what it reads."""
    files = [bands_file(compression=name) for name in (None, "zlib", "lzw", "zstd")]
    readable = 0
    for seed in range(200):
        damaged = mutant(files[seed % len(files)], random.Random(seed))
        result = decoding.decode(FileRef("a", data=damaged), Decoding(value_range=(0, 65535)))
        try:
            values = tifffile.TiffFile(io.BytesIO(damaged)).pages[0].asarray()
        except Exception:
            assert isinstance(result, str)
            continue
        if isinstance(result, DecodedPicture):
            readable += 1
            assert values.shape == result.square.shape[1:] + result.square.shape[:1]
            assert np.abs(values.transpose(2, 0, 1) / 257 - result.square).max() < 0.51
    assert readable > 20


@pytest.mark.parametrize("name", ["PNG", "TIFF, deflate"])
def test_every_flipped_bit_of_the_pixels_is_noticed(name: str) -> None:
    """Each file that is read has the pixels that were written."""
    written, data = scene(), FILES[name]
    for place in range(len(data) // 3, len(data) - 300, 5):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        result = decoding.decode(FileRef("a", data=bytes(damaged)), Decoding())
        if isinstance(result, DecodedPicture):
            assert np.array_equal(result.square, written.transpose(2, 0, 1))


def test_a_png_whose_checksum_alone_is_damaged_is_read() -> None:
    data = bytearray(FILES["PNG"])
    data[-16 - 1] ^= 1  # the last byte of IDAT's sum; IEND takes 12 bytes
    data[-13] ^= 1
    data[-17] ^= 1
    result = decoding.decode(FileRef("a", data=bytes(data)), Decoding())
    assert isinstance(result, DecodedPicture)
    assert np.array_equal(result.square, scene().transpose(2, 0, 1))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_exif_block_neither_hides_damage_nor_is_damage(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    good = file(form, exif=exif)
    if form == "PNG":  # the sum of the block must fit, or Pillow refuses the file
        broken = pillow_png_with_exif(b"MM\0*\0\0\xff\xff")
    else:
        broken = good.replace(b"MM\0*", b"XX\0*").replace(b"II*\0", b"XX*\0")
        assert broken != good
    assert pillow_reads(broken)
    assert isinstance(decoding.decode(FileRef("a", data=broken), WANTED), DecodedPicture)
    cut = broken[: len(broken) * 2 // 3]
    assert not pillow_reads(cut)
    assert isinstance(decoding.decode(FileRef("a", data=cut), WANTED), str)


def pillow_png_with_exif(exif: bytes) -> bytes:
    data = FILES["PNG"]
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif
    return data[:33] + chunk + struct.pack(">I", zlib.crc32(b"eXIf" + exif)) + data[33:]


def test_half_a_png_under_right_sums_is_refused() -> None:
    """Only Pillow's own decoder can tell; looking for EXIF first must not lose what it says."""
    pixels = zlib.compress(scene().tobytes())[:-300]
    rubbish = pixels[:400] + bytes(200) + pixels[600:]
    start = FILES["PNG"][:33]
    chunk = struct.pack(">I", len(rubbish)) + b"IDAT" + rubbish
    chunk += struct.pack(">I", zlib.crc32(b"IDAT" + rubbish))
    data = start + chunk + FILES["PNG"][-12:]
    assert not pillow_reads(data)
    assert isinstance(decoding.decode(FileRef("a", data=data), WANTED), str)


def test_settings_of_the_users_program_do_not_matter_and_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("PNG", "JPEG", "TIFF", "GIF"):
        whole = FILES[name]
        assert isinstance(decoding.decode(FileRef("a", data=whole), WANTED), DecodedPicture)
        assert isinstance(decoding.decode(FileRef("a", data=whole[: len(whole) // 2]), WANTED), str)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True and Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("form", ["PNG", "DIB"])
def test_an_icon_that_hides_a_huge_picture_takes_no_memory(form: str, monkeypatch: Any) -> None:
    """Pillow decodes an icon when it is opened: 48 MB for this one, and 1 GB for one of 1 MB."""
    held = io.BytesIO()
    Image.new("RGBA", (4000, 3000)).save(held, form)
    data = held.getvalue()
    entry = struct.pack("<BBBBHHII", 8, 8, 0, 0, 1, 32, len(data), 22)
    monkeypatch.setattr(pillow_rasters, "MEMORY", pillow_rasters.INTERPRETER + 100_000_000)
    file = io.BytesIO(b"\0\0\1\0\1\0" + entry + data)
    tracemalloc.start()
    with pytest.raises(Unreadable, match="has 4,000 x 3,000 pixels"):
        pillow_rasters.open_pillow(file, 0, None)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_header_without_an_end_is_given_up() -> None:
    """Pillow reads a comment byte by byte: 50 MB took it half a minute."""
    start = time.process_time()
    with pytest.raises(Unreadable, match="rubbish"):
        pillow_rasters.open_pillow(io.BytesIO(b"P6 #" + b"x" * 5_000_000), 0, None)
    assert time.process_time() - start < 1


def test_a_compression_that_pillow_lacks_is_a_reason(tmp_path: Path, capfd: Any) -> None:
    tifffile.imwrite(tmp_path / "a.tif", scene(), photometric="rgb", compression="webp")
    if not pillow_reads((tmp_path / "a.tif").read_bytes()):  # some wheels of Pillow have it
        capfd.readouterr()
        reason = decoding.decode(FileRef(str(tmp_path / "a.tif")), WANTED)
        assert reason == "WEBP compression support is not configured."
        assert capfd.readouterr() == ("", "")
    data = bytearray(FILES["TIFF, LZW"])
    place = data.index(struct.pack("<HHI", 259, 3, 1)) + 8  # the tag of the compression
    data[place : place + 2] = struct.pack("<H", 34661)  # JBIG, which wheels do not have
    assert not pillow_reads(bytes(data))
    reason = decoding.decode(FileRef("a", data=bytes(data)), WANTED)
    assert reason == "Pillow does not read this kind of TIFF (its compression is JBIG)"


def test_a_damaged_file_reads_the_same_from_disk_and_from_a_part_of_a_file(tmp_path: Path) -> None:
    for number, (name, data) in enumerate(FILES.items()):
        damaged = mutant(data, random.Random(number))
        (tmp_path / "alone").write_bytes(damaged)
        (tmp_path / "archive").write_bytes(b"before" * 7 + damaged + b"after")
        results = [
            decoding.decode(ref, WANTED)
            for ref in (
                FileRef("a", data=damaged),
                FileRef(str(tmp_path / "alone")),
                FileRef(str(tmp_path / "archive"), offset=42, length=len(damaged)),
            )
        ]
        contents = [None if isinstance(result, str) else result.content for result in results]
        assert len(set(contents)) == 1, (name, contents)


def test_no_damage_hides_from_the_guard_of_the_png(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our own check, some of these files would be read with other pixels."""
    monkeypatch.setattr(pillow_rasters, "_check_png", lambda *_: None)
    written, data, silent = scene().transpose(2, 0, 1), FILES["PNG"], 0
    for place in range(len(data) // 3, len(data) - 16):
        damaged = bytearray(data)
        damaged[place] ^= 16
        result = decoding.decode(FileRef("a", data=bytes(damaged)), Decoding())
        silent += isinstance(result, DecodedPicture) and not np.array_equal(result.square, written)
    assert silent > 0


def decode_mutants(count: int) -> tuple[int, int, float]:
    """How many mutants are read and how many refused, and the most memory taken in MiB.

    Two of three have several kinds of damage at once, and those of the first bytes are damaged more
    often: they say how large the picture is.
    """
    read = 0
    for number in range(count):
        source = random.Random(number)
        data = mutant(list(FILES.values())[number % len(FILES)], source)
        for _ in range(number % 3):
            head = data[:64]
            data = (
                mutant(head, source) + data[64:] if source.random() < 0.5 else mutant(data, source)
            )
        result = decoding.decode(FileRef("a", data=data), WANTED)
        read += isinstance(result, DecodedPicture)
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return read, count - read, peak / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no peaks")
def test_ten_thousand_mutants_take_less_than_a_gibibyte() -> None:
    with get_context("spawn").Pool(1) as pool:  # a process of its own, as workers are
        read, refused, peak = pool.apply(decode_mutants, (10_000,))
    print(
        f"mutated images: {read + refused:,} tried, {read:,} read, {refused:,} refused,"
        f" 0 exceptions, highest memory {peak:.0f} MiB"
    )
    assert read + refused == 10_000 and read > 1000 and refused > 1000
    assert peak < 1024
