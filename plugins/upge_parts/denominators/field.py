"""The policy over any other whose log-probs the batch has."""

from __future__ import annotations

from torch import Tensor

from upge import Denominator, TokenField, View


class Field(Denominator):
    """The policy whose log-probs a field holds: a teacher, their author, an average of the policy.

        log π_ref = the field   ⇒   ρ_t = π_θ(t)/exp(field_t)

    Where that policy wrote the responses this is importance sampling. The selection `known` leaves out tokens of which
    the field has no number.
    Shapes: the field (T,), nats → (T,), nats. Source: importance sampling; the unified form, arXiv 2509.04419, table 1.
    """

    of: TokenField
    """The field that holds log π_ref."""

    def __call__(self, b: View) -> Tensor:
        return b.field(self.of)
