"""Names of images, members and data sets that come from outside, made safe for writing."""

import hashlib
import re
import unicodedata

_MOST_BYTES = 120  # file systems allow 255, and suffixes are appended
_UNSAFE = re.compile(r'[/\\<>:"|?*]|^[. ]|[. ]$')
# Device names on Windows.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_FORMULA = re.compile(r"^[=+\-@\t\r]")


def file_name(name: str) -> str:
    """Turn any name into a file name: no folders, not hidden, not reserved, not too long.

    A name that already is a safe file name is unchanged. Others get a digest at the end, so that
    different names never become the same file name.
    """
    letters = (
        letter if unicodedata.category(letter)[0] not in "CZ" or letter == " " else "_"
        for letter in name
    )
    safe = _UNSAFE.sub("_", unicodedata.normalize("NFC", "".join(letters)))
    short = safe.encode()[:_MOST_BYTES].decode(errors="ignore")
    if short == name and short and not _RESERVED.fullmatch(short):
        return short
    return f"{short}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def csv_cell(text: str) -> str:
    """Quote a text that a spreadsheet would take for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text
