"""Tokens of which a field has a number."""

from __future__ import annotations

from torch import Tensor

from upge import Selection, TokenField, View


class Known(Selection):
    """The tokens of which a field has a number. Where a model wasn't or couldn't be asked it is NaN.

        select_t = [field_t is a number]

    Of K numbers per token all must be there.
    Shapes: the field (T,) or (T, K) → (T,) bool. Source: a masked mean; NaN is what the machine has for nothing.
    """

    of: TokenField
    """The field that must be known."""

    def __call__(self, b: View) -> Tensor:
        field = b.field(self.of)
        return ~(field.isnan() if field.ndim == 1 else field.isnan().any(1))
