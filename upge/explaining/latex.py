"""The Unicode formulas of docstrings as LaTeX."""

from __future__ import annotations

import re

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
    """Greek and Latin letters that stand together (πθ, words) one by one, or an upright word with space around it."""
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
