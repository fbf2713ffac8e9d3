"""The block `health` of a recipe: which signs of a run going wrong are looked for, from where on, and which end it.

Each check has the threshold from which a rollout batch fails it, and how many have to fail in a row.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from upge.settings import Settings

Check = Literal["entropy_collapse", "kl_blowup", "no_signal", "clip_fraction", "length_explosion", "repetition"]
"""The checks by their names."""


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Checks = Annotated[tuple[Check, ...], BeforeValidator(_as_list)]
Patience = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class EntropyCollapse(Settings):
    """The policy hardly varies its responses any more."""

    below: Share = 0.02
    """Fails where the rollouts' entropy is less than this share of what it was in the first rollout batch."""
    patience: Patience = 3
    """Rollout batches in a row that have to fail."""


class KLBlowup(Settings):
    """The policy runs away: from the one that sampled, or from the model it started from."""

    old: float = Field(default=0.3, ge=0)
    """Fails where KL(π_old‖π_θ) is above this, nats a token; with several optimizer steps a rollout batch."""
    reference: float = Field(default=1.0, ge=0)
    """Fails where KL(π_θ‖π_0) is above this, nats a token, where a part reads the reference model. Where that is
    another model than the policy's start (`reference.path`), fails where the KL has grown by more than this."""
    patience: Patience = 1
    """Rollout batches in a row that have to fail: a blow-up may leave no second one that it could be measured on."""


class NoSignal(Settings):
    """The rollout batches teach nothing: all advantages are 0."""

    at_most: Share = 0.0
    """Fails where the share of prompts with an advantage other than 0 is not above this."""
    patience: Patience = 5
    """Rollout batches in a row that have to fail."""


class ClipFraction(Settings):
    """The trust region lets most tokens push nothing."""

    above: Share = 0.4
    """Fails where some term's trust region masks more than this share of its tokens."""
    patience: Patience = 3
    """Rollout batches in a row that have to fail."""


class LengthExplosion(Settings):
    """Responses no longer come to an end."""

    above: Share = 0.3
    """Fails where, of as many rollouts as came to an end in the first rollout batch, more than this share are cut."""
    patience: Patience = 3
    """Rollout batches in a row that have to fail."""


class Repetition(Settings):
    """Responses end in loops."""

    above: Share = 0.2
    """Fails where more than this share of the rollouts end in a phrase said three times in a row."""
    patience: Patience = 3
    """Rollout batches in a row that have to fail."""


class Health(Settings):
    """Signs of a run going wrong. A check that fails for long enough warns, and ends the run where `stop` names it."""

    off: Checks = ()
    """The checks that are not made: a name or a list of names; all are by default."""
    stop: Checks = ()
    """The checks that end the run: a name or a list of names. It is saved, and may go on."""
    entropy_collapse: EntropyCollapse = EntropyCollapse()
    kl_blowup: KLBlowup = KLBlowup()
    no_signal: NoSignal = NoSignal()
    clip_fraction: ClipFraction = ClipFraction()
    length_explosion: LengthExplosion = LengthExplosion()
    repetition: Repetition = Repetition()

    @model_validator(mode="after")
    def _stops_by_what_is_on(self) -> Health:
        for index, name in enumerate(self.stop):
            if name in self.off:
                self.refuse(("stop", index), f"'{name}' is 'off' and can't end the run")
        return self
