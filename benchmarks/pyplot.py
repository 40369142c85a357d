"""matplotlib, where it is installed."""

from __future__ import annotations

from typing import Any

from kinema.errors import RequestError


def load_pyplot() -> Any:
    """matplotlib.pyplot without a display; RequestError if it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise RequestError("plots need matplotlib: `pip install matplotlib` (in a checkout: `make tools`)") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "kinema"  # the same report gives the same file
    from matplotlib import pyplot

    return pyplot
