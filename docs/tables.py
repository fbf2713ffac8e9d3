"""Writes the generated pages: `python docs/tables.py`. They are made in docs/generate/."""

from __future__ import annotations

import sys

from generate import PAGES, ROOT

if __name__ == "__main__":
    sys.path.append(str(ROOT / "tests"))  # what reduces to what is the data of a test
    for path, page in PAGES.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(page(), encoding="utf-8")
        print(path.relative_to(ROOT))
