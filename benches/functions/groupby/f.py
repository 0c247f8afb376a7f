import numpy
import pandas


def f(event):
    values = numpy.arange(12.0)
    frame = pandas.DataFrame({"group": ["a", "b", "c"] * 4, "value": values})
    means = frame.groupby("group")["value"].mean()
    return {"means": means.to_dict(), "norm": float(numpy.sqrt((values**2).sum()))}
