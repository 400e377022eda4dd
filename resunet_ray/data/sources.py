"""Which mask belongs to which image, in the common layouts of labelled microscopy data.

images/a.png    masks/a.png    [instances/a.png or labels/a.png]    pairs by name
a/images/a.png  a/masks/*.png                                       BBBC038: a mask per nucleus

Other layouts are given as patterns (`config/layouts`).
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from resunet_ray.config.layouts import Layout
from resunet_ray.data import arrays
from resunet_ray.data.annotations import SUFFIXES
from resunet_ray.data.archives import OTHER_SUFFIXES, Entry, is_archive, list_entries
from resunet_ray.data.names import HIDDEN, NO_OME, OTHER, ZARR, PassedOver, is_hidden
from resunet_ray.data.raster.ome_zarr_metadata import METADATA
from resunet_ray.data.stacks import is_stack, name_stack
from resunet_ray.errors import InputError
from resunet_ray.storage import Cache

logger = logging.getLogger(__name__)

_KINDS = {"images": "images", "masks": "masks", "instances": "labels", "labels": "labels"}


@dataclass(frozen=True)
class Source:
    """One labelled image as found: its files, or what is wrong with them."""

    image_id: str
    image: Entry | None
    masks: tuple[Entry, ...] = ()
    """One mask, or one per nucleus."""
    labels: Entry | None = None
    areas: Entry | None = None
    """Whose connected areas of equal values are the nuclei."""
    markers: Entry | None = None
    """Marks of all nuclei, each of which must have a label."""
    per_nucleus: bool = False
    element: int | None = None
    """Its number in the arrays that hold it; None: it has files of its own."""
    reason: str | None = None
    """Why it is rejected without being read; None: it is not."""

    @property
    def name(self) -> str:
        """The file that errors and tables refer to."""
        files = (self.image, *self.masks, self.labels, self.areas, self.markers)
        first = next((file for file in files if file is not None), None)
        assert first is not None, f"{self.image_id} was found without a file"
        return first.name if self.element is None else f"{first.name}[{self.element}]"


@dataclass
class _Root:
    """The files of a folder that contains `images/` and its siblings, by stem."""

    images: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    masks: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    labels: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))


def list_sources(
    uris: Iterable[str],
    *,
    cache: Cache,
    layout: Layout | None = None,
    passed_over: PassedOver | None = None,
) -> list[Source]:
    """List all labelled images of folders and archives, sorted by id.

    Args:
        uris: the folders and archives.
        cache: where compressed tars are expanded.
        layout: which files belong together, also of different inputs; None: those with the same
            name, in folders of the names above.
        passed_over: counts the files that are not read.

    Raises:
        InputError: an input is missing, is encrypted, or has no images.
    """
    passed_over = passed_over or PassedOver()
    files = [(uri, _list_files(uri, cache=cache, passed_over=passed_over)) for uri in uris]
    if layout is None:
        pairs = [_pair_by_folder(uri, listed, passed_over) for uri, listed in files]
        found = [source for sources in pairs for source in sources]
    else:
        found = _pair_by_pattern(files, layout=layout, passed_over=passed_over)
    sources = [element for source in found for element in _split_arrays(source, cache=cache)]
    sources.sort(key=lambda source: (source.image_id, source.name))
    return [
        replace(source, reason="duplicate_id")
        if before is not None and before.image_id == source.image_id
        else source
        for before, source in zip([None, *sources], sources, strict=False)
    ]


def _list_files(uri: str, *, cache: Cache, passed_over: PassedOver) -> Iterator[tuple[str, Entry]]:
    """Yield path and entry of each file that may be read; a Zarr folder is one."""
    zarrs: dict[str, Entry | None] = {}  # None: without metadata of OME
    for path, entry in list_entries(uri, max_bytes=cache.max_bytes):
        if entry.unread == "encrypted":
            raise InputError(f"{entry.name} is encrypted: decrypt the archive, or pack it without")
        if zarr := ZARR.fullmatch(path):  # its files are not counted one by one
            zarrs.setdefault(zarr[1], None)
            if entry.member is None and zarr[2] in METADATA:
                zarrs[zarr[1]] = Entry(entry.uri.removesuffix(f"/{zarr[2]}"))
        elif kind := _tell_kind(path, entry):
            passed_over.add(path, kind)
        else:
            yield path, entry
    for path, image in zarrs.items():
        if is_hidden(path):
            passed_over.add(path, HIDDEN)
        elif image is None:
            passed_over.add(path, "Zarr inside an archive" if is_archive(uri) else NO_OME)
        else:
            yield path, image


def _tell_kind(path: str, entry: Entry) -> str | None:
    """Return why a file is passed over; None: it may be read."""
    place = "a folder" if entry.member is None else "an archive"
    if is_hidden(path):
        return HIDDEN
    if is_archive(path) or path.lower().endswith(OTHER_SUFFIXES):
        logger.warning("%s is an archive inside %s: it is not read", entry.name, place)
        return f"archive inside {place}"
    kind = name_stack(path) if entry.member is not None and is_stack(path) else entry.unread
    return kind and f"{kind} inside {place}"


def _pair_by_folder(
    uri: str, files: Iterable[tuple[str, Entry]], passed_over: PassedOver
) -> list[Source]:
    roots: dict[PurePosixPath, _Root] = defaultdict(_Root)
    for path, entry in files:
        name = PurePosixPath(path)
        kind = _KINDS.get(name.parent.name)
        if not path.lower().endswith(SUFFIXES):
            passed_over.add(path, OTHER)
        elif kind is None:
            passed_over.add(path, f"not in {', '.join(_KINDS)}")
        else:
            getattr(roots[name.parent.parent], kind)[name.stem].append(entry)
    sources = []
    for folder, root in roots.items():
        if list(root.images) == [folder.name]:
            sources.append(_nucleus_masks(folder.name, root))
        else:
            stems = sorted({*root.images, *root.masks, *root.labels})
            sources += [_named_pair(stem, root) for stem in stems]
    if not sources:
        raise InputError(
            f"{uri} holds no images: expected images/NAME.png with masks/NAME.png, "
            "ID/images/ID.png with ID/masks/*.png, or a --layout that describes its files"
            f"{_tell(passed_over)}"
        )
    return sources


def _nucleus_masks(image_id: str, root: _Root) -> Source:
    masks = tuple(entry for stem in sorted(root.masks) for entry in root.masks[stem])
    source = Source(image_id, root.images[image_id][0], masks=masks, per_nucleus=True)
    return source if masks else replace(source, reason="no_mask")


def _named_pair(stem: str, root: _Root) -> Source:
    images, masks, labels = (kind.get(stem, []) for kind in (root.images, root.masks, root.labels))
    source = Source(
        stem,
        images[0] if images else None,
        masks=tuple(masks[:1]),
        labels=labels[0] if labels else None,
    )
    if not images:
        return replace(source, reason="no_image")
    if not masks and not labels:
        return replace(source, reason="no_mask")
    if max(len(images), len(masks), len(labels)) > 1:
        return replace(source, reason="ambiguous_name")
    return source


_Files = dict[str, list[Entry]]


def _tell(passed_over: PassedOver) -> str:
    return f". Passed over: {passed_over}" if passed_over.kinds else ""


def _pair_by_pattern(
    inputs: Iterable[tuple[str, Iterable[tuple[str, Entry]]]],
    *,
    layout: Layout,
    passed_over: PassedOver,
) -> list[Source]:
    """Pair within each input, and what is left over across inputs: publishers split data sets."""
    pairs: dict[tuple[int, tuple[str, ...]], _Files] = {}
    for number, (uri, files) in enumerate(inputs, start=1):
        before = len(pairs)
        for path, entry in files:
            roles = list(layout.match(path))
            for role, key in roles:
                pairs.setdefault((number, key), defaultdict(list))[role].append(entry)
            if not roles:
                passed_over.add(path, "matched by no pattern")
        if len(pairs) == before:
            raise InputError(
                f"{uri} holds no file that a pattern of --layout matches{_tell(passed_over)}"
            )
    for number, key in list(pairs):
        if pairs[number, key].keys() != layout.patterns.keys():
            for role, entries in pairs.pop((number, key)).items():
                pairs.setdefault((0, key), defaultdict(list))[role] += entries
    sources = [
        _build_source("-".join(key), files, layout=layout) for (_, key), files in pairs.items()
    ]
    if all(source.reason is not None for source in sources):
        raise InputError(
            f"--layout pairs none of {len(sources)} images with its labels: of "
            f"{sources[0].name}, for instance, the names in braces are {sources[0].image_id}"
        )
    return sources


def _build_source(image_id: str, files: _Files, *, layout: Layout) -> Source:
    first = {role: entries[0] for role, entries in files.items()}
    per_nucleus = "nuclei" in layout.patterns
    masks = sorted(files.get("nuclei", ()), key=lambda entry: entry.name)
    source = Source(
        image_id,
        first.get("images"),
        masks=tuple(masks if per_nucleus else files.get("masks", ())[:1]),
        labels=first.get("labels"),
        areas=first.get("areas"),
        markers=first.get("markers"),
        per_nucleus=per_nucleus,
    )
    if "images" not in files:
        return replace(source, reason="no_image")
    if files.keys() != layout.patterns.keys():
        return replace(source, reason="not_labelled" if layout.partial else "no_mask")
    if any(len(entries) > 1 for role, entries in files.items() if role != "nuclei"):
        return replace(source, reason="ambiguous_name")
    return source


def _split_arrays(source: Source, *, cache: Cache) -> list[Source]:
    """Return a source for each element of stacks of images and labels."""
    truth = [source.labels, source.areas, source.markers, *source.masks]
    files = [source.image, *(file for file in truth if file is not None)]
    if source.reason is not None or source.per_nucleus:
        return [source]
    try:
        shapes = [
            arrays.read_shape(file, cache=cache)
            for file in files
            if file is not None and arrays.is_array(file)
        ]
    except InputError:  # which is said when it is read
        return [source]
    counts = {shape[:1] for shape in shapes}
    if len(shapes) < len(files) or len(counts) > 1 or len(shapes[-1]) != 3:
        return [source]
    count = shapes[-1][0]
    return [
        replace(
            source, image_id=f"{source.image_id}-{element:0{len(str(count - 1))}d}", element=element
        )
        for element in range(count)
    ]
