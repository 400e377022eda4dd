"""Polygons and MATLAB files become the label image that was drawn, or are refused by name."""

import io
import json
from typing import Any

import numpy as np
import pytest
import scipy.io
import shapely
from shapely.geometry import box

from resunet_ray.data.annotations import decode_geojson, decode_mat, decode_xml, draw_polygons
from resunet_ray.errors import ImageError

SHAPE = (20, 30)


def draw(*polygons: shapely.Geometry) -> np.ndarray:
    return draw_polygons(polygons, shape=SHAPE, name="a")


def rectangle(left: int, top: int, right: int, bottom: int, number: int = 1) -> np.ndarray:
    labels = np.zeros(SHAPE, np.int32)
    labels[top:bottom, left:right] = number
    return labels


def feature(geometry: shapely.Geometry, **more: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": shapely.geometry.mapping(geometry), **more}


def test_a_pixel_is_inside_if_its_centre_is() -> None:
    """A triangle whose long side is x + y = 4.2 holds the pixels with (x + 0.5) + (y + 0.5) < 4.2.

    A box from 2.4 to 5.6 holds the centres 2.5 to 5.5.
    """
    corner = draw(shapely.Polygon([(0, 0), (4.2, 0), (0, 4.2)]))
    rows, columns = np.indices(SHAPE)
    np.testing.assert_array_equal(corner, rows + columns + 1 < 4.2)
    np.testing.assert_array_equal(draw(box(2.4, 6.6, 5.6, 9.4)), rectangle(2, 7, 6, 9))


def test_polygons_are_numbered_in_their_order_with_holes_and_parts() -> None:
    ring = box(1, 1, 9, 9) - box(3, 3, 6, 6)
    parts = shapely.MultiPolygon([box(10, 1, 13, 4), box(15, 1, 18, 4)])
    expected = rectangle(1, 1, 9, 9) - rectangle(3, 3, 6, 6)
    expected += rectangle(10, 1, 13, 4, 2) + rectangle(15, 1, 18, 4, 2)
    np.testing.assert_array_equal(draw(ring, parts), expected)


def test_shared_pixels_belong_to_the_first_polygon_and_large_overlaps_are_refused() -> None:
    """Of 5 columns, the second polygon has 2 in common with the first, and then 3."""
    expected = rectangle(0, 0, 6, 4) + rectangle(6, 0, 9, 4, 2)
    np.testing.assert_array_equal(draw(box(0, 0, 6, 4), box(4, 0, 9, 4)), expected)
    with pytest.raises(ImageError, match=r"polygon 2 of a has 12 of its 20 pixels in common"):
        draw(box(0, 0, 6, 4), box(3, 0, 8, 4))
    with pytest.raises(ImageError, match=r"polygon 3 of a has 24 of its 600 pixels|24 of its 24"):
        draw(box(0, 0, 30, 20), box(0, 0, 30, 20), box(0, 0, 6, 4))


def test_a_nucleus_drawn_twice_counts_once_and_one_without_a_centre_not_at_all() -> None:
    twice = draw(box(1, 1, 5, 5), box(1.2, 1, 5, 5), box(7.6, 7.6, 8.4, 8.4), box(10, 1, 12, 5))
    np.testing.assert_array_equal(twice, rectangle(1, 1, 5, 5) + rectangle(10, 1, 12, 5, 2))


def test_a_polygon_is_cut_at_the_border_and_refused_outside() -> None:
    np.testing.assert_array_equal(draw(box(-3, 15, 4, 99)), rectangle(0, 15, 4, 20))
    for outside in (box(31, 2, 40, 9), box(-9, 2, -1, 9), box(2, 21, 9, 30)):
        with pytest.raises(ImageError, match=r"polygon 2 of a lies at x .* inside the image of 20"):
            draw(box(1, 1, 3, 3), outside)


def test_geojson_of_qupath_gives_its_nuclei() -> None:
    """Of a cell, the nucleus counts. A list of features is what older versions export."""
    cell = feature(
        box(0, 0, 9, 9), nucleusGeometry=shapely.geometry.mapping(box(3, 3, 6, 6)), properties={}
    )
    features = [cell, feature(box(12, 2, 15, 8), properties={"objectType": "annotation"})]
    expected = rectangle(3, 3, 6, 6) + rectangle(12, 2, 15, 8, 2)
    for content in (features, {"type": "FeatureCollection", "features": features}):
        found = decode_geojson(json.dumps(content).encode(), "a")
        np.testing.assert_array_equal(draw(*found), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a GeoJSON file"),
        (b"7", "not a GeoJSON file"),
        (b'{"type": "Topology"}', "not a GeoJSON file"),
        (b"[" * 100_000, "not a GeoJSON file"),
        (json.dumps(feature(shapely.Point(1, 2))).encode(), "has a Point: expected only Polygon"),
        (
            b'{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}',
            "not a GeoJSON file",
        ),
    ],
)
def test_what_is_not_geojson_of_polygons_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        draw(*decode_geojson(content, "a"))


def test_regions_of_image_scope_are_read_from_all_annotations() -> None:
    def region(*points: tuple[float, float]) -> str:
        vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points)
        return f"<Region><Vertices>{vertices}</Vertices></Region>"

    first = region((1, 1), (5, 1), (5, 4), (1, 4)) + region((8, 8), (9, 9))
    second = region((10, 10), (15, 10), (15, 14), (10, 14))
    annotations = "".join(
        f'<Annotation Id="{number}"><Regions>{regions}</Regions></Annotation>'
        for number, regions in enumerate((first, second))
    )
    found = decode_xml(f"<Annotations>{annotations}</Annotations>".encode(), "a")
    np.testing.assert_array_equal(
        draw(*found), rectangle(1, 1, 5, 4) + rectangle(10, 10, 15, 14, 2)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<Annotations>", "not ImageScope's XML"),
        (b"<Annotations><Region><Vertex X='1'/></Region></Annotations>", "not ImageScope's XML"),
        (b"<ASAP_Annotations/>", "begins with <ASAP_Annotations>"),
        (b"<Annotations><Region NegativeROA='1'/></Annotations>", "is to be left out"),
        (
            b'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><Annotations>&d;</Annotations>',
            "it has a DOCTYPE",
        ),
    ],
)
def test_what_is_not_image_scope_s_xml_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_xml(content, "a")


def save(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, arrays, do_compression=True)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
def test_a_matlab_file_gives_its_instances(dtype: type[np.number]) -> None:
    labels = rectangle(2, 3, 9, 12, 200)
    content = save(type_map=np.ones(SHAPE), inst_map=labels.astype(dtype))
    np.testing.assert_array_equal(decode_mat(content, name="a", max_pixels=600), labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (save(labels=np.ones(SHAPE)), "holds labels: expected inst_map"),
        (save(inst_map=np.full(SHAPE, 0.5)), "expected whole numbers from 0"),
        (save(inst_map=np.ones((3, 4, 5))), r"has shape \(3, 4, 5\): expected height x width"),
        (save(inst_map=np.ones((21, 30), np.uint8)), r"claims inst_map of \(21, 30\)"),
        (save(inst_map=np.ones(SHAPE))[:150], "is not a MATLAB file"),
        (b"", "is not a MATLAB file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384), "of version 7.3"),
    ],
    ids=["name", "fractions", "three axes", "pixels", "cut", "empty", "version 7.3"],
)
def test_other_matlab_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_mat(content, name="a", max_pixels=600)
