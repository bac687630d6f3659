"""The script beside an exported model: from image files to classes without transferctl. What it shares with those of
other formats is here; each format adds how its file is loaded and run."""

from __future__ import annotations

_SCRIPT = '''"""Class and probability of images: python {name} IMAGE…

Needs {needs}, Pillow and NumPy; not transferctl, which reads images to the same pixels as this, but
for greys of 16 bits and floats, which this refuses, and for images more than 16 times as long as
wide, of which a value may come out one of 255 away."""

import json
import sys
from pathlib import Path

import numpy as np
{imports}
from PIL import Image, ImageOps

here = Path(__file__).parent
{loads}
resize, crop = model["preprocessing"]["resize"], model["preprocessing"]["crop"]
for path in sys.argv[1:]:
    image = Image.open(path)
    if model["preprocessing"]["decode"] == "reduced":  # a large JPEG at a half, a quarter or an eighth of its size
        image.draft(None, (2 * resize, 2 * resize))
    if image.mode[0] in "IF":
        sys.exit(f"{{path}}: greys of 16 bits, and floats, are not read here; save it with 8 bits")
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    sides = [int(resize * side / min(image.size)) for side in image.size]
    image = image.resize(sides, Image.Resampling[model["preprocessing"]["interpolation"].upper()])
    left, top = (round((side - crop) / 2) for side in sides)
    pixels = np.array(image.crop((left, top, left + crop, top + crop))).transpose(2, 0, 1)[None]  # uint8 [1, 3, H, W]
{runs}
    best = int(probabilities[0].argmax())
    print(path, model["classes"][best], f"{{probabilities[0, best]:.4f}}", sep="\\t")
'''


def script(name: str, needs: str, imports: str, loads: str, runs: str) -> str:
    """loads: lines that make `model` (the card) and the network; runs: lines, in a loop, that make `probabilities`
    [1, C] of `pixels`."""
    return _SCRIPT.format(name=name, needs=needs, imports=imports, loads=loads.strip("\n"), runs=runs.strip("\n"))
