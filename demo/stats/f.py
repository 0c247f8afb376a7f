"""Mean temperature in Seattle by month or by hour of the day, with pandas."""

import importlib.util
import pathlib

import pandas

# Found, not imported: only the data file of the package is wanted.
PACKAGE = pathlib.Path(importlib.util.find_spec("vega_datasets").origin).parent
DATA = PACKAGE / "_data" / "seattle-temps.csv"


def f(event):
    by = event.get("by", "month")
    if by not in ("month", "hour"):
        raise ValueError(f'"by" is "month" or "hour", not {by!r}')

    readings = pandas.read_csv(DATA, names=["date", "temp"], header=0)
    dates = pandas.to_datetime(readings["date"], format="%Y/%m/%d %H:%M")
    means = readings["temp"].groupby(getattr(dates.dt, by)).mean().round(2)
    return {
        "rows": len(readings),
        "by": by,
        "mean_fahrenheit": {str(group): float(mean) for group, mean in means.items()},
    }
