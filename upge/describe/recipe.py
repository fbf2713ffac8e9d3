"""A recipe as the formula that it is, explained as text for the terminal, as Markdown, or as LaTeX for a paper."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from upge.describe.formula import filled, latex, verbatim, written
from upge.estimator.term import Term
from upge.part import Part, Selection, Weight
from upge.recipe.catalog import shipped_recipes
from upge.recipe.compose import Composed, path_in_tree
from upge.recipe.faults import COMMAND_LINE, Place
from upge.recipe.schema import Recipe
from upge.recipe.yaml import Node
from upge.schedule import Schedule

SOURCES = {
    "rollouts": "the policy's rollouts",
    "demonstrations": "the demonstrations",
    "all": "rollouts and demonstrations",
    "kept": "the rows that a likelihood term weighs",
    "forced": "what an environment wrote into responses",
}


@dataclass(frozen=True)
class Setting:
    """A parameter's value, and where it comes from: `file:line`, the command line, a default, or what it follows."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class Piece:
    """One part as a factor of a formula; numbers are filled in to its formulas."""

    symbol: str
    use: str
    formulas: tuple[str, ...]
    settings: tuple[Setting, ...]
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One section of an explanation: a switch, a shaping, or a term with its product."""

    title: str
    product: tuple[str, ...]
    pieces: tuple[Piece, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """A recipe's gradient in all, section by section, and what there is beside the estimator."""

    name: str
    about: str
    terms: tuple[str, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    alike: tuple[str, ...] = ()
    """Recipes with the same gradient, and when."""
    tried: str = ""
    """The batches of the comparison, or the reason why it is inconclusive."""


def explained(recipe: Recipe, composed: Composed | None = None) -> Explanation:
    """The explanation of a recipe; with `composed`, settings have their origins."""
    return Explainer(recipe, None if composed is None else composed.root).explanation()


class Explainer:
    """Explains one recipe."""

    def __init__(self, recipe: Recipe, root: Node | None) -> None:
        self.recipe, self.root = recipe, root

    def explanation(self) -> Explanation:
        """All of it."""
        estimator = self.recipe.estimator
        sections = (*self._switches(), *self._shapings(), *map(self._term, estimator.terms), *self._fields())
        return Explanation(
            self.recipe.name, self.recipe.about, tuple(estimator.terms), sections, tuple(self._providers())
        )

    def _switches(self) -> Iterator[Section]:
        switches = self.recipe.estimator.switch
        for index, switch in enumerate(switches):
            title = f"switch {index + 1}" if len(switches) > 1 else "switch"
            yield Section(title, (), (self._piece("s", switch, ("estimator", "switch", index)),))

    def _shapings(self) -> Iterator[Section]:
        for index, shaping in enumerate(self.recipe.estimator.shaping):
            piece = self._piece("R +", shaping, ("estimator", "shaping", index))
            yield Section("shaping, added to R", (), (piece,))

    def _fields(self) -> Iterator[Section]:
        """The recipe's own fields, in the order in which it names them."""
        read = self.recipe.fields_read()
        for name, field in self.recipe.fields.items():
            unread = () if name in read else ("no part reads it, so it is not opened",)
            yield Section(f"{name}: a field per {field.per}", (), (self._piece("", field, ("fields", name)),), unread)

    def _term(self, name: str) -> Section:
        term = self.recipe.estimator.terms[name]
        place = ("estimator", "terms", name)
        masks = (self._piece("mask", mask, (*place, "mask", index)) for index, mask in enumerate(term.mask))
        pieces = (
            *masks,
            self._piece("π_ref", term.denominator, (*place, "denominator")),
            self._piece("Â", term.advantage, (*place, "advantage")),
            self._piece("n", term.reduction, (*place, "reduction")),
            *(self._piece("select", each, (*place, "select", index)) for index, each in enumerate(term.select)),
        )
        if isinstance(term.weight, Weight):
            pieces = (self._piece("weight", term.weight, (*place, "weight")), *pieces)
        together = [other for other in self.recipe.estimator.counting_with(name) if other != name]
        node = stated(self.root, (*place, "weight"))
        plain = node is not None and not isinstance(term.weight, Weight)
        notes = [f"weight {_weight(term) or 1} ({source_of(node)})"] if plain and node is not None else []
        if term.select:
            notes.append("tokens that `select` leaves out have weight 0, and n_t counts without them")
        if any(isinstance(mask, Selection) for mask in term.mask):
            notes.append("tokens that a selection under `mask` leaves out have weight 0, and n_t counts them")
        notes += [f"counted together with {' and '.join(together)}"] if together else []
        return Section(f"{name}: over {SOURCES[term.source]}", self._product(name, term), pieces, tuple(notes))

    def _product(self, name: str, term: Term) -> tuple[str, ...]:
        """The factors of a term's sum, those that are 1 left out."""
        switched = any(name in switch.terms() for switch in self.recipe.estimator.switch)
        factors = [
            _weight(term),
            f"s_{name}(q)" if switched else "",
            "n_t",
            "mask_t" if term.mask else "",
            "select_t" if term.select else "",
            "" if term.denominator.reads() == {"logp"} else "(π_θ/π_ref)_t",
            "Â_t",
            "∇log π_θ(t)" if term.direction == "likelihood" else "∇H(π_θ)(t)",
        ]
        return tuple(factor for factor in factors if factor)

    def _piece(self, symbol: str, part: Part, place: tuple[str | int, ...]) -> Piece:
        dumped = part.dump()
        settings = tuple(self._setting(part, key, value, place) for key, value in dumped.items() if key != "use")
        return Piece(symbol, str(dumped["use"]), tuple(filled(part)), settings, tuple(sorted(part.reads())))

    def _setting(self, part: Part, name: str, value: object, place: tuple[str | int, ...]) -> Setting:
        node = stated(self.root, (*place, name))
        extra = part.fields()[name].json_schema_extra
        if node is not None:
            origin = source_of(node)
        elif isinstance(extra, dict) and "follows" in extra:
            followed = str(extra["follows"])
            behind = stated(self.root, followed.split("."))
            origin = f"{followed}, {'default' if behind is None else source_of(behind)}"
        else:
            origin = "default"
        return Setting(name, written(value), origin)

    def _providers(self) -> Iterator[str]:
        """Notes on the models beside the policy, and on prompts without weight in any term."""
        recipe, needs = self.recipe, self.recipe.estimator.needs()
        if "reference_logp" in needs:
            yield f"π_0: {recipe.reference.path or 'the policy as it starts, frozen'}"
        if "value" in needs and recipe.critic is not None:
            origin = recipe.critic.path or "the policy's body under a new head"
            yield f"V: a critic from {origin}; clip {recipe.critic.clip:g}"
        if recipe.rollout.refill is not None:
            rounds = recipe.rollout.refill.rounds
            yield f"prompts whose every s is 0 are replaced by fresh ones, in {rounds} rounds at most"


def _weight(term: Term) -> str:
    if isinstance(term.weight, Weight):
        return "weight"
    if isinstance(term.weight, Schedule):
        return f"[{written(term.weight.model_dump())}]"
    return "" if term.weight == 1 else f"{term.weight:g}"


def stated(root: Node | None, path: Sequence[str | int]) -> Place | None:
    """The node of the value at this path; None if the recipe doesn't set it."""
    node = root
    for step in path_in_tree(path, root):
        value = None if node is None else node.value
        if isinstance(value, dict):
            node = value.get(str(step))
        else:
            node = value[step] if isinstance(value, tuple) and isinstance(step, int) and step < len(value) else None
    return None if node is None else node.place


def source_of(place: Place) -> str:
    """`file:line`, relative to the working folder if that is shorter."""
    if place.file == COMMAND_LINE:
        return COMMAND_LINE
    path = Path(place.file)
    for folder in (Path.cwd(), shipped_recipes()):
        if path.is_relative_to(folder):
            return f"{path.relative_to(folder)}:{place.line}"
    return f"{os.path.normpath(path)}:{place.line}"


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
    return ", ".join(f"{setting.name}={setting.value}" for setting in piece.settings)


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
        yield from ("", ALIKE, *(f"    {line}" for line in explanation.alike))
    if explanation.tried:
        yield from ("", explanation.tried)


def _text_piece(piece: Piece) -> Iterator[str]:
    reads = f"   reads {', '.join(piece.reads)}" if piece.reads else ""
    yield f"    {piece.symbol:<7} {piece.use}{reads}"
    yield from (f"            {line}" for line in piece.formulas)
    settings = [f"{setting.name}={setting.value} ({setting.origin})" for setting in piece.settings]
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
            settings = " <br> ".join(f"`{entry.name}={entry.value}` ({entry.origin})" for entry in piece.settings)
            yield f"| ${latex(piece.symbol)}$ | `{piece.use}` | {formulas} | {settings} |"
        yield from ("", *(f"{note}." for note in section.notes), "")
    yield from (f"- {note}" for note in explanation.notes)
    if explanation.alike:
        yield from ("", f"## {ALIKE}", "", *(f"- {entry}" for entry in explanation.alike))
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
