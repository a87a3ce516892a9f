"""Say what is in pictures, by a file that `headstart export` wrote: python run_onnx.py MODEL.onnx PICTURE..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
classes, thresholds, how = (json.loads(about[key]) for key in ("classes", "headstart.thresholds", "headstart.before"))
for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")  # upright, transparency on white
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if how:  # the graph begins after the resize
        (wide, high), side = image.size, how["crop"]
        short = max(how["resize"] or min(wide, high), side)
        size = max(short, short * wide // high), max(short, short * high // wide)
        left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
        filtered = image.resize(size, Image.Resampling[how["filter"]])
        image = filtered.crop((left, top, left + side, top + side))
    (found,) = session.run(["probabilities"], {"image": np.asarray(image)[None]})[0]
    given = np.flatnonzero(found >= thresholds) if thresholds else [found.argmax()]
    print(path, *(f"{classes[place]} {found[place]:.4f}" for place in given))
