"""Write files for QuPath and napari, and say how to open them.

python docs/examples/open_elsewhere.py OUTPUT
"""

import sys
from pathlib import Path

from resunet_ray.segment.export.files import export_runs

export_runs(sys.argv[1], kinds=["geojson", "ome-zarr"])
for path in sorted(Path(sys.argv[1], "exports").glob("geojson/*/*.geojson.gz")):
    print(f"QuPath, with the image open: drag {path} onto it")
for path in sorted(Path(sys.argv[1], "exports").glob("ome-zarr/*/*.ome.zarr")):
    command = f"napari --plugin napari-ome-zarr {path}/labels/nuclei"
    print(f"napari, with napari-ome-zarr installed: {command}")
