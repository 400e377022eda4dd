"""Names that others chose, of images, members and data sets, made safe for where they are written."""

import hashlib
import re
import unicodedata

_MOST_BYTES = 120  # a file system takes 255, and something is appended
_UNSAFE = re.compile(r'[/\\<>:"|?*]|^[. ]|[. ]$')
_RESERVED = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE
)  # devices, on Windows
_FORMULA = re.compile(r"^[=+\-@\t\r]")


def file_name(name: str) -> str:
    """The name of one file, made of any name: no folder, nothing hidden, nothing that a system reserves, not too long.

    A name that is fit to be one stays as it is. Another ends with a digest, so that two that differ never become one.
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
    """The text as a spreadsheet shows it: what would be a formula there is quoted."""
    return f"'{text}" if _FORMULA.match(text) else text
