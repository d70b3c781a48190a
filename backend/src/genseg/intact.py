"""Is an image file whole? Some readers fill what is missing with zeros and say nothing (NIfTI, JPEG)
or print to the terminal from C++ (MetaImage); these checks come before them."""

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

_CHUNK = 1 << 20
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}


class Damaged(ValueError):
    """The file is cut off or its content is not what its name says."""


def check_intact(path: Path) -> int:
    """Raise `Damaged` where `path` is empty or its format's own checks show that bytes are missing.

    NIfTI, JPEG and MetaImage only; the readers of the other formats notice it themselves. Returns the number of
    voxels in a NIfTI file that are NaN or infinite, which its reader would turn into 0 without a word; else 0.
    """
    name = path.name.lower()
    if path.stat().st_size == 0:
        raise Damaged("the file is empty")
    if name.endswith((".nii", ".nii.gz")):
        return _check_nifti(path, gzip.open if name.endswith(".gz") else open)
    elif name.endswith((".jpg", ".jpeg")):
        _check_jpeg(path.read_bytes())
    elif name.endswith(".mha"):
        _check_meta(path)
    return 0


def _check_nifti(path: Path, opener: Callable) -> int:
    bad = 0
    try:
        with opener(path, "rb") as file:
            header = file.read(348)
            expected, offset, floats = _nifti_content(header)
            found = len(header) + len(file.read(offset - len(header)))
            while chunk := file.read(_CHUNK):
                found += len(chunk)
                if floats is not None:
                    whole = len(chunk) // floats.itemsize * floats.itemsize
                    bad += int(np.count_nonzero(~np.isfinite(np.frombuffer(chunk[:whole], floats))))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Damaged(f"the compressed content breaks off or is no gzip ({error})") from error
    if found < expected:
        raise Damaged(f"{found} of {expected} bytes are there")
    return bad


def _nifti_content(header: bytes) -> tuple[int, int, np.dtype | None]:
    """What a NIfTI-1 header announces: bytes in all, where the voxels begin, their type where it is a float.

    For NIfTI-2 and Analyze nothing is announced: (0, 348, None).
    """
    if len(header) < 348:
        raise Damaged("the header is cut off")
    if header[344:347] != b"n+1":
        return 0, 348, None
    order = "<" if struct.unpack("<i", header[:4])[0] == 348 else ">"
    dims = struct.unpack(order + "8h", header[40:56])
    kind, bits = struct.unpack(order + "2h", header[70:74])
    offset = int(struct.unpack(order + "f", header[108:112])[0])
    if not 1 <= dims[0] <= 7 or not 348 <= offset < 2**31:
        raise Damaged("its header holds impossible numbers")
    voxels = int(np.prod([max(d, 1) for d in dims[1 : dims[0] + 1]], dtype=np.int64))
    floats = {16: np.dtype(order + "f4"), 64: np.dtype(order + "f8")}.get(kind)
    return offset + voxels * bits // 8, offset, floats


def _check_jpeg(content: bytes) -> None:
    # Inside the compressed data 0xFF is always followed by 0x00 or a restart marker, so an end
    # marker after the last start of scan is the real end and not part of an embedded thumbnail.
    if content[:2] != b"\xff\xd8":
        raise Damaged("it is no JPEG file")
    if content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda") or b"\xff\xda" not in content:
        raise Damaged("the end of the picture is missing")


def _check_meta(path: Path) -> None:
    with path.open("rb") as file:
        fields: dict[str, str] = {}
        while "ElementDataFile" not in fields:
            line = file.readline(10_000)
            if b"=" not in line:
                raise Damaged("the header is cut off")
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
        start = file.tell()
    if fields["ElementDataFile"] != "LOCAL":
        return
    try:
        voxels = int(np.prod([int(n) for n in fields["DimSize"].split()], dtype=np.int64))
        voxels *= int(fields.get("ElementNumberOfChannels", 1))
        kind = fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")
        expected = voxels * _META_BYTES.get(kind.replace("UCHAR", "CHAR").replace("ULONG", "LONG").lstrip("U"), 1)
        if fields.get("CompressedData", "False").lower() == "true":
            expected = int(fields.get("CompressedDataSize", 0))
    except (KeyError, ValueError) as error:
        raise Damaged(f"the header is not readable ({error})") from error
    found = path.stat().st_size - start
    if found < expected:
        raise Damaged(f"{found} of {expected} bytes of voxels are there")
