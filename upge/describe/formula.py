"""The formulas in parts' docstrings, with the numbers of a recipe filled in."""

from __future__ import annotations

import inspect
import re
from typing import Literal, get_args, get_origin

from upge.part import Part

SYMBOLS = {
    "∇": r"\nabla ", "·": r"\cdot ", "Σ": r"\sum", "Π": r"\prod", "π": r"\pi", "θ": r"\theta", "ρ": r"\rho",
    "γ": r"\gamma ", "λ": r"\lambda ", "δ": r"\delta", "ε": r"\varepsilon ", "μ": r"\mu ", "τ": r"\tau ",
    "β": r"\beta ", "σ": r"\sigma", "φ": r"\varphi ", "Â": r"\hat{A}", "s̃": r"\tilde{s}", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "≡": r"\equiv ", "⇒": r"\Rightarrow ", "→": r"\to ", "←": r"\gets ",
    "∈": r"\in ", "∞": r"\infty ",
    "−": "-", "×": r"\times ", "±": r"\pm ", "…": r"\ldots ", "²": "^2", "½": r"\tfrac{1}{2}", "⁺": "^{+}", "⁻": "^{-}",
    "%": r"\%", "#": r"\#", "&": "&", "{": "{", "}": "}", "|": r"\vert ",
}  # fmt: skip
FUNCTIONS = {"exp", "ln", "log", "min", "max"}
OPERATORS = {"mean", "std", "var", "clip", "clamp"}
SPACE = " "

_TOKEN = re.compile(
    r"s̃|√\([^()]*(?:\([^()]*\)[^()]*)*\)|_\{[^}]*\}|_(?:(?!²)\w)+|[\d.]+e[-+]?\d+|[^\W\d_]{2,}\w*|\s+|.",
    flags=re.DOTALL,
)
_WORD = re.compile(r"[A-Za-z]{2,}\w*")
_WORDS = re.compile(r"\\text\{ [^{}]* \}(?:\s*(?:[-,]\s*)?\\text\{ [^{}]* \})+")


def latex(text: str) -> str:
    """A formula in LaTeX's math mode: words are upright, `a_b` is a subscript, `√(x)` a root."""
    if _WORD.fullmatch(text):
        return _upright(text)
    joined = _WORDS.sub(_one_text, "".join(map(_token, _TOKEN.findall(text))))
    return re.sub(r" {2,}", " ", joined).strip()


def _one_text(words: re.Match[str]) -> str:
    r"""`\text{ a } \text{ b }` as `\text{ a b }`."""
    inside = re.sub(r" \}(\s*(?:[-,]\s*)?)\\text\{ ", lambda gap: gap[1] if gap[1].strip() else " ", words[0])
    return inside.replace(" , ", ", ")


def verbatim(text: str) -> str:
    """Plain text in LaTeX's text mode; what is not ASCII goes through math mode."""
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", text)
    return re.sub(r"[^\x00-\x7f]+", lambda match: f"${latex(match[0])}$", escaped)


def _token(token: str) -> str:
    if token.isspace():
        return SPACE
    if token[0].isdigit() and "e" in token:
        digits, _, exponent = token.partition("e")
        return ("" if digits == "1" else rf"{digits}\cdot ") + f"10^{{{int(exponent)}}}"
    if token.startswith("√"):
        return rf"\sqrt{{{latex(token[2:-1])}}}"
    if token.startswith("_"):
        return _subscript(token[1:].strip("{}"))
    if token in SYMBOLS:
        return SYMBOLS[token]
    if token in FUNCTIONS:
        return rf"\{token} "
    if token in OPERATORS:
        return rf"\operatorname{{{token}}}"
    return _word(token)


def _subscript(inside: str) -> str:
    return f"_{{{_upright(inside) if _WORD.fullmatch(inside) else latex(inside)}}}"


def _word(token: str) -> str:
    """A word in LaTeX: single letters for adjacent Greek and Latin ones (πθ), or an upright word with spaces."""
    if _WORD.fullmatch(token):
        name, _, below = token.partition("_")
        if below:
            return rf"{_upright(name)}{_subscript(below)}"
        return rf"\text{{ {name} }}"
    if len(token) > 1:
        return latex(token[0]) + latex(token[1:])
    return token


def _upright(word: str) -> str:
    escaped = word.replace("_", r"\_")
    return rf"\mathrm{{{escaped}}}"


GREEK = {"gamma": "γ", "lambda": "λ", "beta": "β", "alpha": "α", "epsilon": "ε", "mu": "μ", "tau": "τ", "delta": "δ"}
"""Parameters whose letter formulas use."""
_BETWEEN = re.compile(r"\s{4,}")
"""The separator of two formulas on one line."""


def formula(kind: type[Part]) -> list[str]:
    """The lines of the formula in a part's docstring: its first indented block. A line that is indented deeper than
    the first continues the one above it."""
    text = inspect.cleandoc(kind.__doc__ or "")
    block = re.search(r"^(?:    .+\n?)+", text, flags=re.MULTILINE)
    lines: list[str] = []
    for line in block[0].splitlines() if block else []:
        if lines and line.startswith("     "):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line.strip())
    return lines


def filled(part: Part) -> list[str]:
    """A part's formulas, one a line, with its own numbers in place of its parameters' names (γ is `gamma`, λ `lambda`).

    A formula can begin with a label: a value that one of the part's parameters can choose (`k2: …    k3: …`), or the
    name of one that is true or false. It is kept only where that is chosen, or true.
    """
    formulas = [piece for line in formula(type(part)) for piece in _pieces(line, part)]
    chosen = [_without_label(piece, part) for piece in formulas]
    return [_with_values(piece, part) for piece in chosen if piece is not None]


def _pieces(line: str, part: Part) -> list[str]:
    """The formulas of one line, each with its label; a label applies up to the next one."""
    pieces: list[str] = []
    label = ""
    for piece in _BETWEEN.split(re.sub(r"^(\w+:)\s+", r"\1 ", line)):
        if pieces and piece.startswith("with "):  # what the formula's letters are
            pieces[-1] += f"   {piece}"
            continue
        prefix = piece.partition(":")[0] if ":" in piece else ""
        label = prefix if _choosing(prefix, part) else label
        pieces.append(f"{label}: {piece}" if label and label != prefix else piece)
    return pieces


def _without_label(piece: str, part: Part) -> str | None:
    """The formula behind its label; None where the label is of another choice than the part's."""
    label, _, rest = piece.partition(":")
    choice = _choosing(label, part)
    if not choice:
        return piece
    return rest.strip() if any(getattr(part, name) == value for name, value in choice.items()) else None


def _choosing(label: str, part: Part) -> dict[str, object]:
    """The part's parameters that a label selects, with their values."""
    values: dict[str, object] = {}
    for name, field in type(part).model_fields.items():
        if label == name and field.annotation is bool:
            values[name] = True
        elif get_origin(field.annotation) is Literal and label in get_args(field.annotation):
            values[name] = label
    return values


def _with_values(piece: str, part: Part) -> str:
    for name, value in part.dump().items():
        if name == "use" or isinstance(value, bool):
            continue
        if isinstance(value, int | float | dict) and (shown := _number(value)):
            names = "|".join((re.escape(name), *([GREEK[name]] if name in GREEK else [])))
            piece = re.sub(rf"(?<![\w.])(?:{names})(?!\w)", shown, piece)
        elif isinstance(value, str | list | tuple):
            terms = (value,) if isinstance(value, str) else value
            piece = re.sub(rf"(?<!\w)s_{name}(?=\()", ", ".join(f"s_{term}" for term in terms), piece)
    return piece


def _number(value: float | dict[str, object]) -> str:
    """A number in a formula, or the way of one that moves; "" for another map."""
    if isinstance(value, dict):
        return f"[{written(value)}]" if "start" in value else ""
    return written(value)


def written(value: object) -> str:
    """A parameter's value, for people."""
    match value:
        case {"start": start, "end": end, "steps": steps, "shape": shape}:
            return f"{start:g} → {end:g} in {steps} steps" + ("" if shape == "linear" else f", {shape}")
        case dict():
            return "{" + ", ".join(f"{key}: {written(element)}" for key, element in value.items()) + "}"
        case list() | tuple():
            return "+".join(map(written, value))
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
    return "null" if value is None else str(value).replace("\n", "\\n")  # a cell of a table is one line
