"""Changes that know a format, so that what is wrong lies deeper than its first check: archives, pickles, PNG, ..."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickletools
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any

from tools.reliability.fuzzing.mutate import INTEGERS, TRICKS, Change, damaged, other_value
from tools.reliability.fuzzing.zip_tricks import TRICKS as ZIP_TRICKS

SENTINEL = "code-was-run"
"""What a file that runs code makes, in the folder of the process."""

# --- Pickles ------------------------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _call(module: str, name: str, *arguments: str) -> bytes:
    """Calls a function with texts, and drops what it returns."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(map(_text, arguments)) + b"tR0"


def _doubling(levels: int) -> bytes:
    """A tuple of two times a tuple of two times ...: a few bytes, 2^levels places."""
    return b")" + b"2\x86" * levels


def _doubling_by_memory(levels: int) -> bytes:
    places = [struct.pack("<I", 9000 + level) for level in range(levels)]
    return b")" + b"".join(b"r" + place + b"j" + place + b"\x86" for place in places)


def _again_and_again(function: bytes, argument: bytes, ending: bytes, times: int) -> bytes:
    """One large argument given to a function many times, all results kept."""
    return (
        function
        + b"r\x10\x27\0\0"
        + argument
        + b"r\x11\x27\0\0"
        + b"00]("
        + (b"j\x10\x27\0\0j\x11\x27\0\0" + ending + b"R") * times
        + b"e0"
    )


def _deep(levels: int) -> bytes:
    """A tuple in a tuple in a tuple ..., a byte each."""
    return b")" + b"\x85" * levels


def _changed(module: str, name: str) -> bytes:
    """Sets attributes of a class or function, as if it were an object with slots."""
    attributes = b"N}" + _text("__init__") + b"Ns" + _text("__defaults__") + b"K\x01\x85s" + _text("extra") + b"K\x01s"
    return f"c{module}\n{name}\n".encode() + attributes + b"\x86b0"


def _sized(module: str, name: str) -> bytes:
    """Calls a class with a size of a terabyte."""
    return f"c{module}\n{name}\n".encode() + b"\x8a\x06" + struct.pack("<Q", 1 << 40)[:6] + b"\x85R0"


PAIRS = b"](" + b"K\x01K\x02\x86" * 5000 + b"e"
HUGE = b"B" + struct.pack("<I", 200_000) + b"a" * 200_000
SNIPPETS: Sequence[bytes] = (
    _call("os", "system", f"echo > {SENTINEL}"),
    _call("posix", "system", f"echo > {SENTINEL}"),
    _call("builtins", "eval", f"open('{SENTINEL}', 'w')"),
    _call("builtins", "exec", f"open('{SENTINEL}', 'w')"),
    _call("builtins", "open", SENTINEL, "w"),
    _call("subprocess", "getoutput", f"echo > {SENTINEL}"),
    _call("shutil", "copyfile", "/etc/hostname", SENTINEL),
    _call("pathlib", "Path.touch", SENTINEL),
    _call("torch.hub", "download_url_to_file", "http://127.0.0.1:9/x", SENTINEL),
    _call("torch.jit", "load", SENTINEL),
    _call("numpy", "save", SENTINEL, "x"),
    b"ct2t_evil\nnothing\n0",
    b"\x8c\x08argparse\x8c\x1eNamespace.__init__.__globals__\x93" + b"0",
    b"}" + _doubling(40) + b"K\x01s0",
    b"}" + _doubling_by_memory(40) + b"K\x01s0",
    b"}" + b"(" + _doubling(30) + b"K\x01d0" + b"0",
    _again_and_again(b"cbuiltins\ntuple\n", HUGE, b"\x85", 1000),
    _again_and_again(b"c__builtin__\ntuple\n", HUGE, b"\x85", 1000),
    _again_and_again(b"cbuiltins\nbytearray\n", b"J" + struct.pack("<I", 400_000), b"\x85", 1000),
    _again_and_again(b"c_codecs\nencode\n", b"X" + HUGE[1:], b"X\x06\0\0\0latin1\x86", 1000),
    _again_and_again(b"ccollections\nOrderedDict\n", b")", b"", 1000),
    _again_and_again(b"ccollections\nOrderedDict\n", PAIRS, b"\x85", 1000),
    _again_and_again(b"cbuiltins\nset\n", PAIRS, b"\x85", 1000),
    b"}" + _deep(250_000) + b"K\x01s0",
    b"]r\x10\x27\0\0" + b"]r\x11\x27\0\0j\x10\x27\0\0a0j\x11\x27\0\0r\x10\x27\0\0" * 5000 + b"0",
    b"cx\ny\n" + b")R" * 5000 + b"0",
    _changed("argparse", "Namespace"),
    _changed("numpy", "ndarray"),
    _changed("numpy._core.multiarray", "scalar"),
    _changed("collections", "OrderedDict"),
    _changed("torch._utils", "_rebuild_tensor_v2"),
    _sized("torch", "FloatTensor"),
    _sized("torch", "Tensor"),
    _sized("torch.storage", "UntypedStorage"),
    _call("_codecs", "encode", "ab" * 20_000, "punycode"),
    b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"J\0\0\0\x10tQ0",
    b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0\0x") + _text("cpu") + b"K\x01tQ0",
    _again_and_again(b"cbuiltins\nbytes\n", b"J" + struct.pack("<I", 400_000), b"\x85", 1000),
    _again_and_again(b"cdatetime\ndatetime\n", HUGE, b"\x85", 1000),
    _call("pathlib", "PosixPath", "/etc", SENTINEL),
    b"cpathlib\nPosixPath\n)R}X\x01\0\0\0aK\x01sb0",
    b"cpathlib\nPosixPath\n}X\x08\0\0\0__init__K\x01sb0",
    b"ccollections\ndefaultdict\ncbuiltins\nlist\n\x85RK\x01K\x02s0",
    b"cnumpy\ndtype\nX\x02\0\0\0u4\x85R0",
    b"(" * 50_000,
    b"]" * 5000 + b"a" * 4999 + b"0",
    b"cbuiltins\nbytearray\nJ\0\0\0\x30\x85R0",
    b"\x8e" + struct.pack("<Q", 2**62),
    b"\x95" + struct.pack("<Q", 2**40),
    b"\x8b" + struct.pack("<I", 2**31 - 1),
    b"r\xff\xff\xff\x7f",
    b"\x8a\xff" + b"\x7f" * 255 + b"0",
    b"I" + b"9" * 5000 + b"\n0",
    b"X\x03\0\0\0\xed\xa0\x800",
    b"K\x05Q",
    b"0",
    b".",
)
"""Operations of a pickle that want to run code, to fill the memory, or never to end."""


def damaged_pickle(data: bytes, rng: Random) -> bytes:
    """A pickle with something put between its operations, some of them left out, or only its bytes changed."""
    chance = rng.random()
    if chance < 0.35:
        return damaged(data, rng)
    starts = []
    with contextlib.suppress(Exception):
        starts = [place or 0 for _, _, place in pickletools.genops(data)]
    if len(starts) < 3:
        return damaged(data, rng)
    first = rng.randrange(1, len(starts))
    at = starts[first]
    if chance < 0.75:
        return data[:at] + rng.choice(SNIPPETS) + data[at:]
    if chance < 0.9:
        return data[:at] + data[starts[min(len(starts) - 1, first + rng.choice((1, 1, 2, 5)))] :]
    end = starts[min(len(starts) - 1, first + 1)]
    return data[:at] + damaged(data[at:end], rng) + data[end:]


# --- Archives -----------------------------------------------------------------------------------------------


def damaged_zip(inner: Change) -> Change:
    """Of zip files: `inner` changes a pickle in it; or a member is missing, twice there, packed, called otherwise; or
    two readers read two files."""

    def change(data: bytes, rng: Random) -> bytes:
        chance = rng.random()
        if chance < 0.3:
            return damaged(data, rng)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info), zipfile.ZIP_STORED) for info in archive.infolist()]
        place = rng.randrange(len(members))
        name, content, kind = members[place]
        pickles = [i for i, (member, _, _) in enumerate(members) if member.endswith((".pkl", ".json"))]
        if chance < 0.75 and pickles:
            place = rng.choice(pickles)
            name, content, _ = members[place]
            members[place] = (name, inner(content, rng), kind)
        elif chance < 0.80:
            members[place] = (name, damaged(content, rng), kind)
        elif chance < 0.85:
            del members[place]
        elif chance < 0.90:
            members[place] = (rng.choice(("", "archive/", "w/data/")) + rng.choice(TRICKS[:-1]), content, kind)
        elif chance < 0.95:
            members.append((name, damaged(content, rng), kind))
        elif chance < 0.98:
            return rng.choice(list(ZIP_TRICKS.values()))(zipped(members))
        else:
            members[place] = (name, content + bytes(rng.choice((1, 30)) << 20), zipfile.ZIP_DEFLATED)
        return zipped(members)

    return change


def zipped(members: Sequence[tuple[str, bytes, int]]) -> bytes:
    """The archive of (name, content, how it is packed)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content, kind in members:
            with contextlib.suppress(ValueError, UnicodeEncodeError):
                archive.writestr(zipfile.ZipInfo(name), content, kind)
    return file.getvalue()


KINDS = (
    *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.CONTTYPE),
    *(tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, b"Z", tarfile.AREGTYPE),
)


def damaged_tar(data: bytes, rng: Random) -> bytes:
    """A tar file with a header that says something else, its checksum right; or one that lies in its extensions."""
    chance = rng.random()
    if chance < 0.2:
        return damaged(data, rng)
    if chance < 0.5:
        return _other_header(data, rng)
    file = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old:
        members = [(member, (stored.read() if (stored := old.extractfile(member)) else b"")) for member in old]
    place = rng.randrange(len(members))
    member, content = members[place]
    if chance < 0.6:
        member.name = rng.choice((*TRICKS[:-1], "../escaped.jpg", "/tmp/t2t-escaped.jpg", "a/../../b.cls"))
    elif chance < 0.7:
        member.type, member.linkname = rng.choice(KINDS), rng.choice(("/etc/passwd", "../outside/kept", member.name))
    elif chance < 0.8:
        member.pax_headers = {
            rng.choice(
                ("size", "path", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.realsize", "hdrcharset", "mtime")
            ): rng.choice(("-1", "9" * 30, "1e9", "x", "0", "../e", "0,1,2"))
        }
    elif chance < 0.95:
        content = damaged_label(content, rng) if member.name.endswith((".cls", ".json")) else damaged(content, rng)
    else:
        members.append((member, content))
    members[place] = (member, content)
    with tarfile.open(fileobj=file, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as new:
        for one, stored_bytes in members:
            one.size = len(stored_bytes) if one.type in tarfile.REGULAR_TYPES else one.size
            with contextlib.suppress(ValueError, UnicodeError):
                new.addfile(one, io.BytesIO(stored_bytes))
    return file.getvalue()


def damaged_label(data: bytes, rng: Random) -> bytes:
    """Something else in the place of a number, or of JSON."""
    deep = b'{"label": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    odd = (
        b"-1",
        b"99",
        b"",
        b"1.5",
        b"9" * 25,
        b"9" * 5000,
        str(2**32).encode(),
        b"\xff",
        b"0x1",
        b"true",
        b"[]",
        deep,
    )
    return rng.choice(odd) if rng.random() < 0.7 else damaged(data, rng)


def _other_header(data: bytes, rng: Random) -> bytes:
    """One field of one header, and the checksum that goes with it."""
    found = bytearray(data)
    start = 512 * rng.choice(
        [block for block in range(len(data) // 512) if data[512 * block + 257 : 512 * block + 262] == b"ustar"] or [0]
    )
    kind = rng.random()
    if kind < 0.5:
        size = rng.choice((*INTEGERS, -512, -1024, -1536, 2**33))
        octal = b"%011o\0" % (size % 2**33) if rng.random() < 0.4 else b"\x80" + (size % 2**88).to_bytes(11, "big")
        found[start + 124 : start + 136] = (b"\xff" + octal[1:]) if size < 0 else octal
    elif kind < 0.8:
        found[start + 156 : start + 157] = rng.choice(KINDS)
    else:
        at = start + rng.randrange(512)
        found[at : at + 1] = rng.randbytes(1)
    found[start + 148 : start + 156] = b" " * 8
    found[start + 148 : start + 156] = b"%06o\0 " % sum(found[start : start + 512])
    return bytes(found[: len(data)])


def damaged_gzip(inner: Change) -> Change:
    """Of gzipped files: `inner` changes what is packed; or what is packed is followed by many zeros."""

    def change(data: bytes, rng: Random) -> bytes:
        chance = rng.random()
        if chance < 0.3:
            return damaged(data, rng)
        content = gzip.decompress(data)
        return _bomb(content) if chance < 0.32 else gzip.compress(inner(content, rng), 1, mtime=0)

    return change


def _bomb(start: bytes) -> bytes:
    """A gigabyte of zeros in a megabyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # can be said again and again
    return gzip.compress(start, mtime=0) + b"\x1f\x8b\x08" + bytes(7) + block * 1024 + b"\x03\0" + bytes(8)


# --- Others -------------------------------------------------------------------------------------------------


def damaged_safetensors(data: bytes, rng: Random) -> bytes:
    """Another header, of the right length; or only other bytes."""
    if rng.random() < 0.3:
        return damaged(data, rng)
    length = struct.unpack("<Q", data[:8])[0]
    header: Any = json.loads(data[8 : 8 + length])
    kind = rng.random()
    if kind < 0.3 and "__metadata__" in header:
        key = rng.choice(list(header["__metadata__"]))
        header["__metadata__"][key] = json.dumps(other_value({"x": 1}, rng)) if rng.random() < 0.7 else "[" * 3000
    elif kind < 0.6:
        name = rng.choice([key for key in header if key != "__metadata__"])
        fitting = {"F32": (4, ("I32", "U32")), "I64": (8, ("F64", "U64", "C64"))}
        size, kinds = fitting.get(header[name]["dtype"], (1, ("U8", "I8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0")))
        begin, end = header[name]["data_offsets"]
        count = (end - begin) // size
        header[name]["dtype"] = rng.choice(kinds)
        header[name]["shape"] = rng.choice(
            ([count], [1, count], [count, 1, 1, 1], [1] * 70 + [count], header[name]["shape"])
        )
    elif kind < 0.7:
        name = rng.choice([key for key in header if key != "__metadata__"])
        header[rng.choice((*TRICKS[:-1], "module." * 2000 + name, name * 500))] = header.pop(name)
    else:
        header = other_value(header, rng)
    text = json.dumps(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def damaged_png(data: bytes, rng: Random) -> bytes:
    """Other numbers in a chunk with the right checksum; chunks left out or twice there."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.3:
        return damaged(data, rng)
    chunks, place = [], 8
    while place + 8 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    index = rng.randrange(len(chunks))
    name, content = chunks[index]
    kind = rng.random()
    if kind < 0.35:
        sides = struct.pack(">II", *(rng.choice((0, 1, 3, 60000, 2**31 - 1, 2**32 - 1)) for _ in range(2)))
        chunks[0] = (b"IHDR", (sides if rng.random() < 0.5 else chunks[0][1][:8]) + damaged(chunks[0][1], rng)[8:13])
    elif kind < 0.6:
        chunks[index] = (name, damaged(content, rng))
    elif kind < 0.7:
        del chunks[index]
    elif kind < 0.8:
        chunks.insert(index, chunks[index])
    else:
        extra = rng.choice((b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"PLTE", b"tRNS", b"gAMA"))
        packed = b"a\0\0" + zlib.compress(bytes(rng.choice((10, 10_000_000))))
        chunks.insert(min(1, len(chunks)), (extra, rng.choice((packed, b"", b"a", rng.randbytes(26)))))
    return data[:8] + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
