"""Which mask belongs to which image, in the common layouts of labelled microscopy data.

images/a.png    masks/a.png    [instances/a.png or labels/a.png]    pairs by name
a/images/a.png  a/masks/*.png                                       BBBC038: a mask per nucleus
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from resunet_ray.data.archives import Entry, list_entries
from resunet_ray.errors import InputError

_KINDS = {"images": "images", "masks": "masks", "instances": "labels", "labels": "labels"}


@dataclass(frozen=True)
class Source:
    """One labelled image as found: its files, or what is wrong with them."""

    image_id: str
    image: Entry | None
    masks: tuple[Entry, ...] = ()
    """One mask, or one per nucleus."""
    labels: Entry | None = None
    per_nucleus: bool = False
    reason: str | None = None
    """Why it is rejected without being read; None: it is not."""

    @property
    def name(self) -> str:
        """The file that errors and tables refer to."""
        first = self.image or (self.masks or (self.labels,))[0]
        assert first is not None, f"{self.image_id} was found without a file"
        return first.name


@dataclass
class _Root:
    """The files of a folder that contains `images/` and its siblings, by stem."""

    images: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    masks: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    labels: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))


def list_sources(uris: Iterable[str], *, max_bytes: int) -> list[Source]:
    """List all labelled images of folders and archives, sorted by id.

    Args:
        uris: the folders and archives.
        max_bytes: maximum expanded size of a compressed tar.

    Raises:
        InputError: an input is missing, or has no folder `images/`.
    """
    sources: list[Source] = []
    for uri in uris:
        found = _pair(list_entries(uri, max_bytes=max_bytes))
        if not found:
            raise InputError(
                f"{uri} holds no images: expected images/NAME.png with masks/NAME.png, "
                "or ID/images/ID.png with ID/masks/*.png"
            )
        sources += found
    sources.sort(key=lambda source: (source.image_id, source.name))
    return [
        _rejected(source, "duplicate_id")
        if before is not None and before.image_id == source.image_id
        else source
        for before, source in zip([None, *sources], sources, strict=False)
    ]


def _pair(entries: Iterable[tuple[str, Entry]]) -> list[Source]:
    roots: dict[PurePosixPath, _Root] = defaultdict(_Root)
    for path, entry in entries:
        name = PurePosixPath(path)
        kind = _KINDS.get(name.parent.name)
        if kind and not name.name.startswith(".") and "__MACOSX" not in name.parts:
            getattr(roots[name.parent.parent], kind)[name.stem].append(entry)
    sources = []
    for folder, root in roots.items():
        if list(root.images) == [folder.name]:
            sources.append(_nucleus_masks(folder.name, root))
        else:
            stems = sorted({*root.images, *root.masks, *root.labels})
            sources += [_named_pair(stem, root) for stem in stems]
    return sources


def _nucleus_masks(image_id: str, root: _Root) -> Source:
    masks = tuple(entry for stem in sorted(root.masks) for entry in root.masks[stem])
    source = Source(image_id, root.images[image_id][0], masks=masks, per_nucleus=True)
    return source if masks else _rejected(source, "no_mask")


def _named_pair(stem: str, root: _Root) -> Source:
    images, masks, labels = (kind.get(stem, []) for kind in (root.images, root.masks, root.labels))
    source = Source(
        stem,
        images[0] if images else None,
        masks=tuple(masks[:1]),
        labels=labels[0] if labels else None,
    )
    if not images:
        return _rejected(source, "no_image")
    if not masks and not labels:
        return _rejected(source, "no_mask")
    if max(len(images), len(masks), len(labels)) > 1:
        return _rejected(source, "ambiguous_name")
    return source


def _rejected(source: Source, reason: str) -> Source:
    return Source(
        source.image_id, source.image, source.masks, source.labels, source.per_nucleus, reason
    )
