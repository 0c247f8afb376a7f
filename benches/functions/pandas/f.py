import numpy
import pandas


def f(event):
    values = numpy.arange(12.0)
    column = pandas.DataFrame({"value": values})["value"]
    norm = numpy.sqrt((values**2).sum())
    return {"sum": float(column.sum()), "mean": float(column.mean()), "norm": float(norm)}
