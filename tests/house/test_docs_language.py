"""Sentences of the documentation are short: at most one in twenty has more than 30 words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = sorted((ROOT / "docs" / "reference").glob("*.md"))
LIMIT = 30
"""Words of a sentence that is still short."""
SHARE = 0.05
"""Share of longer ones that all written pages together may have, and all generated ones."""
ABBREVIATION = r"\b(e\.g|i\.e|vs|cf|et al|etc|Eq|Fig|Sec)\. "
NO_PROSE = re.compile(r"\s*(\||#|!\[|<!--|:::)")
NEW_BLOCK = re.compile(r"\s*([-*+]|\d+[.)]|>)\s+")


class Sentence(NamedTuple):
    page: str
    line: int
    text: str

    @property
    def words(self) -> int:
        return sum(any(letter.isalnum() for letter in word) for word in self.text.split())


def blocks(text: str) -> list[tuple[int, str]]:
    """(first line, text) of each paragraph and list item; no code, tables, headings or pictures."""
    found: list[tuple[int, list[str]]] = []
    fenced = within = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced, within = not fenced, False
        elif fenced or not line.strip() or NO_PROSE.match(line) or (line.startswith("    ") and not within):
            within = False
        elif marker := NEW_BLOCK.match(line):
            found.append((number, [line[marker.end() :]]))
            within = True
        elif within:
            found[-1][1].append(line)
        else:
            found.append((number, [line]))
            within = True
    return [(number, " ".join(lines)) for number, lines in found]


def sentences(text: str, page: str = "") -> list[Sentence]:
    """The sentences of a page; a link is its text, and the dots within code end nothing."""
    found = []
    for line, block in blocks(text):
        prose = re.sub(r"\]\([^)]*\)", "]", block)
        prose = re.sub(r"`[^`]*`", lambda code: code[0].replace(".", "·").replace("?", "·").replace("!", "·"), prose)
        prose = re.sub(r"\s+", " ", prose)
        prose = re.sub(ABBREVIATION, lambda short: short[0].replace(".", "·"), prose)
        for sentence in re.split(r"(?<=[.!?])[\"')*_\]]*\s+", prose):
            if sentence.strip():
                found.append(Sentence(page, line, sentence.strip()))
    return found


def too_long(found: list[Sentence]) -> list[Sentence]:
    """Those over the limit, the longest first."""
    return sorted((sentence for sentence in found if sentence.words > LIMIT), key=lambda s: -s.words)


def require_short(found: list[Sentence]) -> None:
    """Raise AssertionError with the worst sentences where too many are long."""
    long = too_long(found)
    worst = [f"{s.page}:{s.line}: {s.words} words: {s.text}" for s in long[:15]]
    count = f"{len(long)} of {len(found)} sentences have more than {LIMIT} words"
    assert len(long) < SHARE * len(found), "\n".join([count, *worst])


@pytest.mark.parametrize("pages", [WRITTEN, GENERATED], ids=["written", "generated"])
def test_the_documentation_has_short_sentences(pages: list[Path]) -> None:
    found = [
        sentence for page in pages for sentence in sentences(page.read_text("utf-8"), page.relative_to(ROOT).as_posix())
    ]
    assert len(found) > 500
    require_short(found)


LONG = "word " * LIMIT + "end."
SAMPLE = f"""# A heading of {LONG}

A short one. {LONG} `a.b c` ends nothing; e.g. this is the
third sentence, [with a link of its own](to/a/page.md#and-a-place).

| a table | {LONG} |

- an item
  that goes on
- {LONG}

    code = {LONG}

```python
{LONG}
```
"""


def test_a_long_sentence_is_found_with_its_line() -> None:
    found = sentences(SAMPLE, "page.md")
    assert [sentence.line for sentence in too_long(found)] == [3, 10]
    assert {sentence.words for sentence in too_long(found)} == {LIMIT + 1}


def test_too_many_long_sentences_fail_and_are_listed() -> None:
    with pytest.raises(AssertionError, match=r"2 of 5 sentences .*\n\s*page.md:3: 31 words: word word"):
        require_short(sentences(SAMPLE, "page.md"))
    require_short(sentences(SAMPLE + "One more.\n\n" * 40))


def test_sentences_are_those_of_prose_alone() -> None:
    texts = [sentence.text for sentence in sentences(SAMPLE) if sentence.words <= LIMIT]
    third = "`a·b c` ends nothing; e·g· this is the third sentence, [with a link of its own]."
    assert texts == ["A short one.", third, "an item that goes on"]


def test_thirty_words_are_still_short() -> None:
    assert not too_long(sentences("word " * (LIMIT - 1) + "end."))
    assert too_long(sentences("word " * LIMIT + "end."))
