"""Shrinks a photograph with Pillow and returns it as a PNG in base64."""

import base64
import importlib.util
import io
import pathlib

from PIL import Image

# Found, not imported: only the photograph in the package is wanted.
PACKAGE = pathlib.Path(importlib.util.find_spec("textual_image").origin).parent
PHOTOGRAPH = PACKAGE / "gracehopper.jpg"


def f(event):
    size = event.get("size", 128)
    if not isinstance(size, int) or not 1 <= size <= 512:
        raise ValueError(f'"size" is a number of pixels from 1 to 512, not {size!r}')

    with Image.open(PHOTOGRAPH) as photograph:
        original = photograph.size
        photograph.thumbnail((size, size), Image.Resampling.LANCZOS)
        png = io.BytesIO()
        photograph.save(png, format="PNG", optimize=True)
        width, height = photograph.size
    return {
        "width": width,
        "height": height,
        "original_width": original[0],
        "original_height": original[1],
        "png_base64": base64.b64encode(png.getvalue()).decode("ascii"),
    }
