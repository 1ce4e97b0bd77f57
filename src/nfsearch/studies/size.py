"""How much a model's size should correct a short training's loss, as a study finds it."""

from __future__ import annotations

import numpy as np
import pandas as pd

FEWEST = 8  # architectures that a fit, which has three unknowns, is made of


def wanted_weight(losses: pd.Series, parameters: pd.Series, long: pd.Series) -> float | None:
    """The `size_weight` with which the sized losses are as near as they can be to a line through the losses of the long
    training, by least squares over the architectures that have all three, [architectures] each. None of too few, or
    where the short losses say nothing."""
    known = pd.concat([losses, np.log(parameters), long], axis=1).replace(np.inf, np.nan).dropna().to_numpy(float)
    if len(known) < FEWEST:
        return None
    short, size, late = known.T
    _, per_loss, per_log = np.linalg.lstsq(np.stack([np.ones_like(short), short, size], axis=1), late)[0]
    return float(-per_log / per_loss) if per_loss > 0 else None
