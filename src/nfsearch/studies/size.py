"""What a short training's loss and the size of a model say together of the loss of a long training.

Of two models with the same loss after few tokens the larger one ends lower, as less of what it can learn is learned. So
long loss = constant + per_loss * loss + per_log * ln(parameters), by least squares over the architectures of a study.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

FEWEST = 8  # architectures that a fit, which has three unknowns, is made of


@dataclass(frozen=True)
class SizeLaw:
    """Losses in nats; `parameters` are counted whole, the embedding too."""

    constant: float
    per_loss: float
    per_log: float

    def at(self, loss: float, parameters: float) -> float:
        """The loss expected of the long training."""
        return self.constant + self.per_loss * loss + self.per_log * float(np.log(parameters))

    def __str__(self) -> str:
        return f"{self.constant:.3f} + {self.per_loss:.3f} x loss {self.per_log:+.4f} x ln(parameters)"


def size_law(losses: pd.Series, parameters: pd.Series, long: pd.Series) -> SizeLaw | None:
    """Of the architectures that have all three, [architectures] each; None of too few."""
    known = pd.concat([losses, np.log(parameters), long], axis=1).replace(np.inf, np.nan).dropna().to_numpy(float)
    if len(known) < FEWEST:
        return None
    short, size, wanted = known.T
    found = np.linalg.lstsq(np.stack([np.ones_like(short), short, size], axis=1), wanted)[0]
    return SizeLaw(*map(float, found))


def expected(losses: pd.Series, parameters: pd.Series, long: pd.Series) -> pd.Series:
    """The long loss that is expected of each architecture with a finite loss, by a fit to all the others, so that none
    is told its own: [architectures]. Not a number where the others are too few."""

    def of(number: int) -> float:
        law = size_law(losses.drop(number), parameters, long)
        return law.at(losses[number], parameters[number]) if law else np.nan

    finite = losses.replace(np.inf, np.nan).dropna().index
    return pd.Series({number: of(number) for number in finite}, dtype=float).reindex(losses.index)
