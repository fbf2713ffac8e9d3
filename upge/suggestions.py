"""Suggestions for a misspelt word: the option that was most likely meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The option that `word` was most likely meant to be, whatever its case; None if none is near."""
    by_folded = {option.casefold(): option for option in options}
    folded = word.casefold()
    close = difflib.get_close_matches(folded, by_folded, n=1, cutoff=0.6)
    # Some words are far by edit distance and still clear, when only one option fits: one cut short ("temp" for
    # "temperature"), or with its letters in another order ("rl" for "lr").
    begun = [
        option
        for option in by_folded
        if (len(folded) >= 3 and option.startswith(folded)) or sorted(option) == sorted(folded)
    ]
    if close:
        return by_folded[close[0]]
    return by_folded[begun[0]] if len(begun) == 1 else None


def did_you_mean(word: str, options: Iterable[str], otherwise: str | None = None) -> str:
    """`did you mean 'lr'?`; where no option is near, `otherwise`, by default what there is."""
    there = sorted(map(str, options))
    close = nearest(word, there)
    if close is not None:
        return f"did you mean '{close}'?"
    return f"there are {', '.join(there)}" if otherwise is None else otherwise
