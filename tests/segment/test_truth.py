"""Images are scored against true masks, and nucleus by nucleus against numbered ones."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from support import read_output

from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import encode_png
from resunet_ray.segment.run import segment

PLACES = ((20, 24), (24, 90), (70, 40), (80, 110))


def test_numbered_nuclei_give_scores_of_nuclei(dark_bundle: str, tmp_path: Path) -> None:
    """Four of five true nuclei can be seen, so that AP is 4 / 5 and PQ at most 4 / 4.5."""
    labels = np.zeros((100, 140), np.uint16)
    for number, (y, x) in enumerate(PLACES, start=1):
        cv2.circle(labels, (x, y), 8, number, -1)
    image = np.full((*labels.shape, 3), 230, np.uint8)
    image[labels > 0] = 30
    cv2.circle(labels, (70, 20), 8, 7, -1)
    truths: dict[str, np.ndarray] = {"numbered": labels, "mask": (labels > 0) * np.uint8(255)}
    for folder, content in [("in", image), *truths.items()]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(encode_png(content))
    rows = {}
    for name in truths:
        config = SegmentConfig(
            bundle=dark_bundle,
            input=(str(tmp_path / "in"),),
            output=str(tmp_path / "out" / name),
            masks=str(tmp_path / name),
            actors=0,
        )
        segment(config)
        (rows[name],) = read_output(config.output, "images").to_dict("records")
    assert rows["numbered"]["ap50"] == pytest.approx(4 / 5)
    assert 0.85 * 4 / 4.5 < rows["numbered"]["pq"] <= 4 / 4.5
    assert rows["numbered"]["f1"] == rows["mask"]["f1"] == pytest.approx(8 / 9, abs=0.05)
    assert pd.isna(rows["mask"]["ap50"])
    assert pd.isna(rows["mask"]["pq"])
