"""Layouts: which file of a data set belongs to which, as patterns; and those of known data sets.

    images=**/Slide_*/{id}.png   masks=**/GT_*/{id}.png

A pattern is a path relative to an input. `*` stands for any text without `/`, `**` for any folders,
and `{name}` for a text without `/` that pairs files: an image and its labels have the same `{name}`
in every place. The case of letters only counts in a `{name}`.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from resunet_ray.config.checks import require

ROLES = {
    "images": "the images",
    "masks": "one mask per image: 0 and one other value",
    "labels": "the number of the nucleus per pixel, or polygons",
    "areas": "a connected area of equal values is a nucleus; only the first channel counts",
    "nuclei": "any number of masks per image, each of one nucleus",
    "markers": "marks of all nuclei: an image is left out if one of them has no label",
}
"""What a pattern can find, and what that is."""
PARTIAL = "partial"
"""The word for a data set in which only some images have labels."""
_TRUTHS = [{"masks"}, {"labels"}, {"masks", "labels"}, {"areas"}, {"nuclei"}]
_TOKEN = re.compile(r"\*\*/|\*|\{(\w+)\}")


@dataclass(frozen=True)
class Layout:
    """Patterns by role."""

    patterns: dict[str, re.Pattern[str]]
    partial: bool
    """Whether images without labels are left out. Otherwise they are rejected."""

    def match(self, path: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield each role that a file has, and the texts by which it is paired."""
        names = self.patterns["images"].groupindex
        for role, pattern in self.patterns.items():
            if found := pattern.fullmatch(path):
                yield role, tuple(found[name] for name in names)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published data set: its layout, and what is known about it."""

    title: str
    words: tuple[str, ...]
    """As they would follow `--layout`."""
    facts: str
    """How its files are organised."""
    source: str
    """Where that was looked up."""
    licence: str
    """As stated by its publisher, or by the page that is named."""


_BBBC = "https://bbbc.broadinstitute.org"
_CTC_MARKERS = "markers=**/{movie}_GT/TRA/man_track{frame}.tif"
_CTC_TERMS = "its own conditions (http://celltrackingchallenge.net/datasets/): ask for permission"
PRESETS = {
    "bbbc038": Preset(
        title="2018 Data Science Bowl, `stage1_train.zip`",
        words=("images=**/{id}/images/{id}.png", "nuclei=**/{id}/masks/*.png"),
        facts="A folder for each image, in it one mask per nucleus. Also found without `--layout`.",
        source="https://github.com/ace19-dev/2018-Data-Science-Bowl (`data_description.md`)",
        licence=f"CC0 ({_BBBC}/BBBC038)",
    ),
    "bbbc039": Preset(
        title="U2OS nuclei, `images.zip` and `masks.zip`",
        words=("images=**/images/{id}.tif", "areas=**/masks/{id}.png"),
        facts="16-bit images. Touching nuclei differ in the first channel of the mask; nuclei "
        "apart from each other may share a value.",
        source="https://gist.github.com/jccaicedo/15e811722fca51e3ae90e8b43057f075",
        licence=f"CC0 ({_BBBC}/BBBC039)",
    ),
    "cellbindb": Preset(
        title="CellBinDB, `CellBinDB.zip`",
        words=("images=**/{id}-img.tif", "labels=**/{id}-instancemask.tif"),
        facts="A folder for each sample. The files `-mask.tif` are not read.",
        source="https://github.com/constantinpape/torch-em (`cellbindb.py`)",
        licence="CC0 (https://zenodo.org/records/15370205)",
    ),
    "consep": Preset(
        title="CoNSeP",
        words=("images=**/Images/{id}.png", "labels=**/Labels/{id}.mat"),
        facts="Labels are the array `inst_map` of a MATLAB file.",
        source="https://github.com/vqdang/hover_net",
        licence="not looked up",
    ),
    "ctc": Preset(
        title="Cell Tracking Challenge in 2D, for instance `Fluo-N2DH-SIM+.zip`: gold truth",
        words=(
            "images=**/{movie}/t{frame}.tif",
            "labels=**/{movie}_GT/SEG/man_seg{frame}.tif",
            _CTC_MARKERS,
            PARTIAL,
        ),
        facts="Of real movies, few frames have labels, and in some of these not every nucleus has "
        "one. `TRA` marks all nuclei: frames in which one has no label are left out.",
        source="http://celltrackingchallenge.net/annotations/",
        licence=_CTC_TERMS,
    ),
    "ctc-silver": Preset(
        title="The same: silver truth",
        words=(
            "images=**/{movie}/t{frame}.tif",
            "labels=**/{movie}_ST/SEG/man_seg{frame}.tif",
            _CTC_MARKERS,
            PARTIAL,
        ),
        facts="Labels are the majority opinion of several algorithms.",
        source="http://celltrackingchallenge.net/annotations/",
        licence=_CTC_TERMS,
    ),
    "monuseg": Preset(
        title="MoNuSeg 2018, training data",
        words=("images=**/Tissue Images/{id}.tif", "labels=**/Annotations/{id}.xml"),
        facts="Polygons, as Aperio ImageScope writes them.",
        source="https://github.com/constantinpape/torch-em (`monuseg.py`)",
        licence="CC BY-NC-SA 4.0 (https://huggingface.co/datasets/Angelou0516/MoNuSeg)",
    ),
    "monuseg-test": Preset(
        title="MoNuSeg 2018, test data",
        words=("images=**/MoNuSegTestData/{id}.tif", "labels=**/MoNuSegTestData/{id}.xml"),
        facts="The same, images and polygons in one folder.",
        source="https://github.com/constantinpape/torch-em (`monuseg.py`)",
        licence="as above",
    ),
    "nuinsseg": Preset(
        title="NuInsSeg, `NuInsSeg.zip`",
        words=("images=**/tissue images/{id}.png", "labels=**/label masks modify/{id}.tif"),
        facts="A folder for each organ. In `label masks`, an overlap of two nuclei has a number of "
        "its own; in `label masks modify`, which is read, it belongs to one of them.",
        source="https://github.com/masih4/NuInsSeg",
        licence="CC BY 4.0 (https://zenodo.org/records/10518968, as InstanSeg lists it)",
    ),
    "s-bsst265": Preset(
        title="S-BSST265, annotated fluorescence images",
        words=("images=**/rawimages/{id}.tif", "labels=**/groundtruth/{id}.tif"),
        facts="Its other folders (drawings, single cells, visualisations) are not read.",
        source="https://www.ebi.ac.uk/biostudies/studies/S-BSST265 (its README)",
        licence="CC0 (its README)",
    ),
    "stardist": Preset(
        title="StarDist's subset of BBBC038, `dsb2018.zip`",
        words=("images=**/images/{id}.tif", "labels=**/masks/{id}.tif"),
        facts="`train/` and `test/`; the files in `masks/` are numbered nuclei.",
        source="https://github.com/stardist/stardist (`examples/2D/1_data.ipynb`)",
        licence="that of BBBC038",
    ),
    "tnbc": Preset(
        title="TNBC, `TNBC_NucleiSegmentation.zip`",
        words=("images=**/Slide_*/{id}.png", "masks=**/GT_*/{id}.png"),
        facts="Binary masks. `areas=**/GT_*/{id}.png` instead of `masks=…` takes each connected "
        "area for a nucleus.",
        source="https://github.com/constantinpape/torch-em (`tnbc.py`)",
        licence="CC BY 4.0 (https://zenodo.org/records/3552674, as InstanSeg lists it)",
    ),
}
"""Layouts of data sets as their publishers offer them, unpacked or as zip."""


def parse_layout(words: Sequence[str]) -> Layout:
    """Read the words that follow `--layout`: the name of a preset, or ROLE=PATTERN for each role.

    Raises:
        ConfigError: the preset or a role is unknown, a role is given twice or missing, or patterns
            pair by different names.
    """
    given = " ".join(words)
    if len(words) == 1 and "=" not in words[0]:
        require(
            words[0] in PRESETS,
            f"--layout {given}: expected {', '.join(PRESETS)}, or images=PATTERN labels=PATTERN",
        )
        words = PRESETS[words[0]].words
    pairs = [word.partition("=") for word in words if word != PARTIAL]
    roles = [role for role, _, _ in pairs]
    for role, _, pattern in pairs:
        require(
            role in ROLES and pattern != "" and roles.count(role) == 1,
            f"--layout {given}: cannot read {role}={pattern}. Expected each of "
            f"{', '.join(ROLES)} at most once, followed by =PATTERN, and {PARTIAL}",
        )
    require(
        {*roles} - {"images", "markers"} in _TRUTHS and "images" in roles,
        f"--layout {given}: expected images=PATTERN and one of masks=, labels=, areas= and "
        "nuclei=, or masks= and labels=",
    )
    patterns = {
        role: _compile(unicodedata.normalize("NFC", pattern), given=given)
        for role, _, pattern in pairs
    }
    names = {role: set(pattern.groupindex) for role, pattern in patterns.items()}
    for role in roles:
        require(
            names[role] == names["images"] and bool(names[role]),
            f"--layout {given}: the names in braces are {_show(names['images'])} in images= and "
            f"{_show(names[role])} in {role}=. Expected the same, and at least one",
        )
    return Layout(patterns, partial=PARTIAL in words)


def _show(names: set[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names)) or "none"


def _compile(pattern: str, *, given: str) -> re.Pattern[str]:
    text, seen, position = "", set(), 0
    for token in _TOKEN.finditer(pattern):
        text += re.escape(pattern[position : token.start()])
        position = token.end()
        name = token[1]
        if name is None:
            text += "(?:[^/]+/)*" if token[0] == "**/" else "[^/]*"
        else:
            text += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
            seen.add(name)
    text += re.escape(pattern[position:])
    require(
        not any(name[0].isdigit() for name in seen),
        f"--layout {given}: a name in braces begins with a digit: expected a letter",
    )
    return re.compile(text, re.IGNORECASE)
