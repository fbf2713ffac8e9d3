"""SVG files as tests read them."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

Curves = list[list[tuple[float, float]]]


def panels(path: Path) -> dict[str, Curves]:
    """The places of each curve's points in the drawing, by the panel's title."""
    found = {}
    for panel in ElementTree.parse(path).getroot().findall("{*}g"):
        if (title := panel.find("{*}text[@class='title']")) is not None:
            lines = panel.findall("{*}g/{*}path[@class='line']")
            found[str(title.text)] = [places(line.attrib["d"]) for line in lines]
    return found


def places(path: str) -> list[tuple[float, float]]:
    """The points of a path of straight lines."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-.\d]+) ([-.\d]+)", path)]


def keys(path: Path) -> list[str]:
    """What the colours mean."""
    groups = ElementTree.parse(path).getroot().findall("{*}g")
    texts = [group.find("{*}text") for group in groups if group.find("{*}rect[@width='10']") is not None]
    return ["" if text is None else str(text.text) for text in texts]
