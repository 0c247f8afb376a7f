from PIL import Image


def f(event):
    picture = Image.radial_gradient("L").resize((128, 128), Image.Resampling.LANCZOS)
    return {"size": picture.size, "sum": sum(picture.histogram()[128:])}
