"""The text of a file, whatever its encoding: UTF-8, UTF-16 or GB18030; another is refused by its name."""

from __future__ import annotations

import codecs
from pathlib import Path

from common.errors import RoadmapError

# the longer marks first: that of UTF-32 begins with that of UTF-16
_MARKS = {
    codecs.BOM_UTF32_LE: ("utf-32", "UTF-32"),
    codecs.BOM_UTF8: ("utf-8-sig", "UTF-8 with a mark at its start"),
    codecs.BOM_UTF16_LE: ("utf-16", "UTF-16, low byte first"),
    codecs.BOM_UTF16_BE: ("utf-16", "UTF-16, high byte first"),
}
_LINE_ENDS = {"utf-16-le": ((10, 0), "UTF-16, low byte first"), "utf-16-be": ((0, 10), "UTF-16, high byte first")}
_COMMON = range(0xB0, 0xD8)  # first bytes of GB2312's first level: the 3,755 most used characters
_MARKS_OF_TEXT = set("，。！？；：、（）《》“”‘’—…·￥【】０１２３４５６７８９％")
_SHARE = 0.9  # of the characters beyond ASCII in real text; text read in a wrong encoding has far fewer of these


def read_text(path: Path) -> str:
    """A file's text; one printed line names its encoding if that is not UTF-8.

    Args:
        path: An existing file.

    Raises:
        RoadmapError: The file is empty, holds bytes that are no text, or has an encoding that is not read here.
    """
    data = path.read_bytes()
    if not data.strip():
        raise RoadmapError(f"{path.name} could not be read: it is empty.")
    text, name = _decoded(path, data)
    if name:
        print(f"{path.name}: read as {name}.")
    return text


def _decoded(path: Path, data: bytes) -> tuple[str, str]:
    """The text, and what its encoding is called if that is not UTF-8."""
    try:
        for mark, (encoding, name) in _MARKS.items():
            if data.startswith(mark):
                return data.decode(encoding), name
        for encoding, (end, name) in _LINE_ENDS.items():
            if b"\0" in data and len(data) % 2 == 0 and end in zip(data[::2], data[1::2]):
                return data.decode(encoding), name
    except UnicodeDecodeError as error:
        raise RoadmapError(f"{path.name} begins as {name}, but byte {error.start} is damaged; save it again as UTF-8.") from error
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        if (text := _gb18030(data)) is not None:
            return text, "GB18030 (GBK)"
        raise _refused(path, data, error.start) from error


def _gb18030(data: bytes) -> str | None:
    """The text, if the bytes are GB18030: nearly all characters beyond ASCII are common ones, or a detector says so."""
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError:
        return None
    beyond = [c for c in text if not c.isascii()]
    common = sum(c in _MARKS_OF_TEXT or ("\u4e00" <= c <= "\u9fff" and c.encode("gb18030")[0] in _COMMON) for c in beyond)
    if beyond and common >= _SHARE * len(beyond):
        return text
    return text if _guess(data) in ("gb18030", "gbk", "gb2312") else None


def _guess(data: bytes) -> str | None:
    """What charset-normalizer takes the encoding for; on short texts it is often wrong, so it only names what is refused."""
    from charset_normalizer import from_bytes

    best = from_bytes(data[:100_000]).best()
    return best.encoding if best else None


def _refused(path: Path, data: bytes, start: int) -> RoadmapError:
    line = data[:start].count(b"\n") + 1
    try:
        share = len(data.decode("utf-8", "ignore").encode()) / len(data)
    except UnicodeError:
        share = 0.0
    if share > 0.9:
        return RoadmapError(
            f"{path.name}, line {line}: the byte 0x{data[start]:02x} is not UTF-8, though the rest is; "
            "correct that line and save the file as UTF-8."
        )
    guess = _guess(data)
    if guess is None or b"\0" in data:
        return RoadmapError(f"{path.name} is not a text file in an encoding that is read here; save it as UTF-8.")
    return RoadmapError(
        f"{path.name} is neither UTF-8, UTF-16 nor GB18030; it may be {guess}, which is a guess from its bytes. "
        "Open it in the program that made it, and save it as UTF-8."
    )
