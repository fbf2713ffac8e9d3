"""An explanation as text for the terminal, as Markdown, or as LaTeX for a paper."""

from __future__ import annotations

from collections.abc import Iterator

from upge.describe.formula import latex, verbatim
from upge.describe.recipe import Explanation, Piece, Section

FORMATS = ("text", "markdown", "latex")
ALIKE = "the same gradient as"


def rendered(explanation: Explanation, form: str = "text") -> str:
    """The explanation in one of `FORMATS`."""
    lines = {"text": _text, "markdown": _markdown, "latex": _latex}[form](explanation)
    return "\n".join(lines).rstrip()


def sum_of(explanation: Explanation) -> str:
    """`∇J = ∇J_rl + ∇J_sft`."""
    return "∇J = " + " + ".join(f"∇J_{name}" for name in explanation.terms)


def product_of(section: Section) -> str:
    """`∇J_rl = Σ_t n_t · Â_t · ∇log π_θ(t)`; "" for what is no term."""
    name = section.title.partition(":")[0]
    return f"∇J_{name} = Σ_t " + " · ".join(section.product) if section.product else ""


def _settings(piece: Piece) -> str:
    return ", ".join(f"{each.name}={each.value}" for each in piece.settings)


# Text.


def _text(explanation: Explanation) -> Iterator[str]:
    yield f"{explanation.name}: {explanation.about}".rstrip(": ")
    yield from ("", f"    {sum_of(explanation)}", "")
    for section in explanation.sections:
        yield section.title
        if section.product:
            yield f"    {product_of(section)}"
        for piece in section.pieces:
            yield from _text_piece(piece)
        yield from (f"    {note}" for note in section.notes)
        yield ""
    yield from (f"    {note}" for note in explanation.notes)
    if explanation.alike:
        yield from ("", ALIKE, *(f"    {each}" for each in explanation.alike))
    if explanation.tried:
        yield from ("", explanation.tried)


def _text_piece(piece: Piece) -> Iterator[str]:
    reads = f"   reads {', '.join(piece.reads)}" if piece.reads else ""
    yield f"    {piece.symbol:<7} {piece.use}{reads}"
    yield from (f"            {line}" for line in piece.formulas)
    settings = [f"{each.name}={each.value} ({each.origin})" for each in piece.settings]
    if settings:
        yield f"            {', '.join(settings)}"


# Markdown.


def _markdown(explanation: Explanation) -> Iterator[str]:
    yield f"# {explanation.name}"
    yield from ("", explanation.about, "", f"$${latex(sum_of(explanation))}$$", "")
    for section in explanation.sections:
        yield from (f"## {section.title}", "")
        if section.product:
            yield from (f"$${latex(product_of(section))}$$", "")
        yield from ("| factor | part | formula | settings |", "|---|---|---|---|")
        for piece in section.pieces:
            formulas = " <br> ".join(f"${latex(line).replace('|', chr(92) + 'vert ')}$" for line in piece.formulas)
            settings = " <br> ".join(f"`{each.name}={each.value}` ({each.origin})" for each in piece.settings)
            yield f"| ${latex(piece.symbol)}$ | `{piece.use}` | {formulas} | {settings} |"
        yield from ("", *(f"{note}." for note in section.notes), "")
    yield from (f"- {note}" for note in explanation.notes)
    if explanation.alike:
        yield from ("", f"## {ALIKE}", "", *(f"- {each}" for each in explanation.alike))
    if explanation.tried:
        yield from ("", explanation.tried)


# LaTeX.


def _latex(explanation: Explanation) -> Iterator[str]:
    yield f"% {explanation.name}: {explanation.about}; needs amsmath"
    yield r"\begin{align*}"
    yield latex(sum_of(explanation).replace(" = ", " & = ", 1)) + r" \\"
    products = [product_of(section) for section in explanation.sections if section.product]
    yield " \\\\\n".join(latex(product.replace(" = ", " & = ", 1)) for product in products)
    yield r"\end{align*}"
    yield "where"
    yield r"\begin{itemize}"
    for section in explanation.sections:
        yield rf"\item {verbatim(section.title)}"
        yield r"  \begin{itemize}"
        for piece in section.pieces:
            formulas = r", \quad ".join(f"${latex(line)}$" for line in piece.formulas)
            settings = f" ({verbatim(_settings(piece))})" if piece.settings else ""
            yield rf"  \item ${latex(piece.symbol)}$, \texttt{{{verbatim(piece.use)}}}{settings}: {formulas}"
        yield r"  \end{itemize}"
    yield r"\end{itemize}"
