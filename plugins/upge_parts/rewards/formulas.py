r"""The formula or number that a sentence states: `She has 18 eggs left.` → `18`.

Math-Verify reads formulas, and takes the words of a sentence for products of their letters. So the formula is cut out
here, in time linear in the sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt lim max min gcd lcm mod pi"
"""Words that belong to formulas."""

UNITS = (
    "mm cm dm km mi ft in yd kg mg lb oz ml mL cl dl kW kWh MW GW Wh kJ MJ eV keV MeV GeV Hz kHz MHz GHz Pa kPa MPa "
    "bar atm mol mmol rad sr deg kV mV mA kN mN nm pm fm μm um μs us ms ns min hr hrs sec yr kB MB GB TB bit bits cal "
    "kcal dB erg dyn Gyr Myr pc kpc Mpc AU mph kph rpm USD EUR GBP m s g h d N J W V A K C F T L l Ω °C °F"
)
"""Symbols of units."""

_SYMBOL = "(?:" + "|".join(sorted(map(re.escape, UNITS.split()), key=len, reverse=True)) + ")"
_POWER = r"(?:\^\{?-?\d\}?|[²³])?"
_UNIT = re.compile(
    rf"(?<=[\d}}).$])(?:\s|\\[,; ]|~){{0,9}}{_SYMBOL}{_POWER}"
    rf"(?:(?:\s|\\[,; ]|[*/·]|\\cdot){{1,9}}{_SYMBOL}{_POWER})*\s*$"
    r"|(?<=[\d}).$])\s?/\s?(?:second|minute|hour|day|week|month|year|person|hr|min|sec|wk|yr)\s*$"
)

_WORDED = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s{0,9}\{[^{}]*\}"
_RAISED = r"(?:\^\{?-?\d\}?)?"
_TOKEN = re.compile(
    rf"""
      (?P<math>\$\$[^$]+\$\$ | \$(?:[^$\\\n]|\\[^\n])+\$(?!\d)
        | \\\[(?:[^\\]|\\(?!\]))+\\\] | \\\((?:[^\\]|\\(?!\)))+\\\))
    | (?P<joint>\\text\s{{0,9}}\{{\s*(?:and|or)\s*\}})
    | (?P<text>{_WORDED}{_RAISED})
    | (?P<money>\\?[$£€¥₹₩₽]\s?(?=[\d.]))
    | (?P<number>\d{{1,3}}(?:,\d{{3}})+(?![\d,])(?:\.\d+)? | \d+(?:\.\d+)?(?:[eE][-+]?\d+(?![\w.]))? | \.\d+)
    | (?P<space>\\[,;:!\s] | ~ | [^\S\n]+)
    | (?P<command>\\[a-zA-Z]+ | \\.)
    | (?P<script>[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+)
    | (?P<word>[^\W\d_]{{2,}}(?:['’-][^\W\d_]+)*)
    | (?P<letter>[^\W\d_])
    | (?P<bold>\*\*)
    | (?P<mark>[-+*/^_=<>≤≥≠≈!|%°′:()\[\]{{}}&×÷·±∓√∞∪∩∈∅⟨⟩−²³½,;])
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_OPEN, _CLOSE = "([{⟨", ")]}⟩"
_BEHIND = "0123456789^_=/}"
_LEFT, _RIGHT = "*/^=<>:!%}_&)],;×÷· ", "*/^=<>:&({[+×÷·_−-,;\\ "
_LIST = re.compile(r"[\s,;&$*]{0,9}(?:\\text\s{0,9}\{\s*)?(?P<word>and|or|to)?\s{0,9}\}?[\s$*]{0,9}")
_OR = re.compile(r"\s*(?:[^\W\d_]+\s+){1,3}(?:,\s*)?or\s+[\s$*]*")
_NOT = re.compile(
    r"(?:\b(?:not|nor|never|unlike|rather\s+than|instead\s+of)|n['’]t)(?:\s+(?:the|simply|just|equal\s+to)){0,2}[\s(:$*]*$",
    re.IGNORECASE,
)
_STOP = re.compile(r"[.;!?](?=[\s*)\]\"']|$)|[\n。]")
_NAMELESS = re.compile(r"\\(?:quad|qquad|left|right|displaystyle|boxed|fbox)(?![a-zA-Z])")
_NAME = r"[^\W\d_](?:[^\W\d_]{0,3}|\([^\W\d_]\))"
_SYMBOLIC = re.compile(rf"[^\W\d_]|{_NAME}(?:\s*[-+*/^=·]\s*{_NAME})+")


class Formula(NamedTuple):
    """A formula in a sentence: where it stands, and whether it is set off from the words, as by dollars."""

    start: int
    end: int
    set_off: bool


class Token(NamedTuple):
    """A piece of a sentence, and its kind: the group of `_TOKEN`."""

    kind: str
    start: int
    end: int
    text: str


def is_sentence(text: str) -> bool:
    """Whether a text has words of a sentence, or several formulas, around what it states.

    Words alone are an answer as they stand, and so is a formula whose letters stand together: `2ab`, `MR=SRMC`.
    """
    tokens = [token for token in _tokens(text) if token.kind != "space" and token.text not in ("and", "or")]
    kinds = ["equation" if token.text == "=" else token.kind for token in tokens]
    worded = bool({"word", "text"} & set(kinds))
    formal = bool({"number", "math", "command", "money", "equation"} & set(kinds)) or {"word", "text"} <= set(kinds)
    return (worded and formal) or ("math" in kinds and len(kinds) > 1)


def formulas(text: str) -> list[Formula]:
    """The formulas and numbers in a sentence, in order; those behind a "not" are left out."""
    found = [each for run in _runs(text) if (each := _trimmed(text, run)) is not None]
    ends = [0, *(each.end for each in found)]
    stated = [each for end, each in zip(ends, found, strict=False) if not _NOT.search(text[end : each.start])]
    return [each for each in stated if each.end - each.start > 1 or text[each.start].isdigit()] or stated


def first(text: str) -> tuple[str, tuple[str, ...]]:
    """What a sentence states first, and the alternatives that it gives there; ("", ()) if it states nothing.

    Of a calculation that goes on in words, as `3 boxes of 6 eggs = 18 eggs`, it is what the last equals sign says.
    Several that are listed to the end of the sentence are one answer.
    """
    found = formulas(text)
    if not found:
        named = re.search(_WORDED, text)
        return named[0] if named else "", ()
    stop = _STOP.search(text, found[0].end)
    clause = [each for each in found if stop is None or each.start < stop.start()]
    results = [each for each in clause if text[: each.start].rstrip(" $*").endswith("=")]
    if results:
        return _written(text, results[-1:]), ()
    listed, chosen = _listed(text, clause)
    ended = re.match(r"[\s$*)]*(?:[.;!?。]|$)", text[listed[-1].end :]) is not None
    closed = all(each.set_off or text[each.end - 1] in _CLOSE for each in listed) or len(listed) > 2
    if chosen or ended or closed:
        return _written(text, listed), tuple(_written(text, [each]) for each in listed) if chosen else ()
    return _written(text, listed[:1]), ()


def last(text: str) -> str:
    """What a sentence states last, "" if it states nothing; several that are set off and listed are one answer."""
    found = formulas(text)
    if not found:
        return ""
    listed = found[-1:]
    for one in reversed(found[:-1]):
        joined = _LIST.fullmatch(text[one.end : listed[0].start])
        if joined is None or joined["word"] == "to":
            break
        listed.insert(0, one)
    whole = not text[: listed[0].start].strip(" $*")  # a list with a unit behind it
    return _written(text, listed if whole or all(each.set_off for each in listed) else found[-1:])


def without_unit(formula: str) -> str:
    """A formula without the symbols of units behind its number: `5 m/s^2` → `5`."""
    return _UNIT.sub("", formula)


def _listed(text: str, clause: list[Formula]) -> tuple[list[Formula], bool]:
    """The formulas from the first on that commas, "and", "or" or "to" join; whether one is to be chosen of them."""
    listed, chosen = clause[:1], False
    for one in clause[1:]:
        between = text[listed[-1].end : one.start]
        joined = _LIST.fullmatch(between)
        if joined is None and not _OR.fullmatch(between):
            break
        chosen = chosen or joined is None or joined["word"] in ("or", "to")
        listed.append(one)
    return listed, chosen


def _written(text: str, listed: list[Formula]) -> str:
    return text[listed[0].start : listed[-1].end]


def _tokens(text: str) -> Iterator[Token]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:  # nothing is no token
            return
        kind, end = match.lastgroup or "other", match.end()
        if kind == "script":  # Chinese, Japanese and Korean put no blank between a number and a word
            kind = "word"
        elif kind == "math" and match[0][0] == "$" and _is_money(match[0]):
            kind, end = "money", position + 1
        elif kind == "word" and _belongs(text, match):
            kind = "letter"
        elif kind == "word" and (raised := re.compile(_RAISED).match(text, end)):
            end = raised.end()
        elif kind == "letter" and match[0] in "aAI" and re.match(r" [^\W\d_]{2}", text[end : end + 3]):
            kind = "word" if text[position - 1 : position] in ("", " ") else kind  # `18 a day`
        yield Token(kind, position, end, text[position:end])
        position = end


def _is_money(math: str) -> bool:
    """Whether two dollar signs are the beginnings of two amounts, as in `$5 and then $7`."""
    bare = re.sub(_WORDED + r"|\\[a-zA-Z]+|" + FUNCTIONS.replace(" ", "|"), "", math[1:-1])
    return re.match(r"\s?[\d.]", math[1:]) is not None and re.search(r"[a-zA-Z]{2}", bare) is not None


def _belongs(text: str, word: re.Match[str]) -> bool:
    """Whether letters that stand together are part of a formula: a function, or next to a number or an operator."""
    before, behind = text[: word.start()][-1:], text[word.end() : word.end() + 1]
    near = (before != "" and before in _BEHIND) or (behind != "" and behind in "^_=")
    return word[0] in FUNCTIONS.split() or (near and len(word[0]) <= 4)


def _runs(text: str) -> Iterator[Formula]:
    """The longest pieces without a word in them."""
    start: int | None = None
    brackets = braces = end = 0
    for token in _tokens(text):
        within = start is not None and braces > 0
        if within or (token.kind in ("number", "command", "letter", "mark") and not _divides(text, token, brackets)):
            start = token.start if start is None else start
            end = token.end
            if token.kind in ("mark", "command"):
                brackets += (token.text[-1] in _OPEN) - (token.text[-1] in _CLOSE)
                braces += (token.text == "{") - (token.text == "}")
        elif token.kind not in ("space", "money"):
            if start is not None:
                yield Formula(start, end, False)
            start, brackets, braces = None, 0, 0
            if token.kind == "math":
                yield Formula(token.start, token.end, True)
    if start is not None:
        yield Formula(start, end, False)


def _divides(text: str, token: Token, brackets: int) -> bool:
    """Whether a comma, a semicolon or a colon stands between formulas, and in none."""
    if token.text == ":":
        return re.match(r"\d:\d", text[max(token.start - 1, 0) : token.end + 1]) is None
    tight = text[token.end : token.end + 1].strip() and text[: token.start][-1:].strip()  # `1,3,5` is one answer
    return token.text in (",", ";") and brackets <= 0 and not tight


def _trimmed(text: str, run: Formula) -> Formula | None:
    """A run without what belongs to the sentence: operators and brackets at its ends. None if nothing is left."""
    start, end, set_off = run
    if set_off:
        return run
    while True:
        end = start + len(text[start:end].rstrip(_RIGHT))
        start = end - len(text[start:end].lstrip(_LEFT))
        unmatched = _unmatched(text[start:end])
        if unmatched is None:
            break
        start, end = (start + 1, end) if unmatched == 0 else (start, start + unmatched)
    if start and re.match(r"[-−]\s+\d", text[start:end]):  # a dash
        start = end - len(text[start + 1 : end].lstrip())
    piece = text[start:end]
    says = re.search(r"\d|\\[a-zA-Z]|[½∅∞√]", _NAMELESS.sub("", piece)) or _SYMBOLIC.fullmatch(piece)
    return Formula(start, end, False) if says else None


def _unmatched(piece: str) -> int | None:
    """Where a bracket stands that has no partner; any kind closes any, since those of intervals do."""
    opened: list[int] = []
    for match in re.finditer(r"[(\[{⟨)\]}⟩]", piece):
        if match[0] in _OPEN:
            opened.append(match.start())
        elif opened:
            opened.pop()
        else:
            return match.start()
    return opened[0] if opened else None
