"""Find the nuclei of one image.

python docs/examples/one_image.py IMAGE LABELS.png
"""

import sys

import cv2

from resunet_ray.bundle import load_bundle

image = cv2.cvtColor(cv2.imread(sys.argv[1], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
found = load_bundle("nuclei").segment(image)
print(found.nuclei[["centroid_y", "centroid_x", "area_px", "score"]].to_string())
# 0 is background, each nucleus has its own number.
cv2.imwrite(sys.argv[2], found.labels.astype("uint16"))
