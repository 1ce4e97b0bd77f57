"""The words of a report that a newcomer may not know."""

WORDS = {
    "operator": "A layer: a token mixer or a feed-forward layer (F).",
    "token mixer": "An operator through which tokens see one another: attention (A), DeltaNet (D), Gated DeltaNet "
    "(GDN), GLA, Mamba2 (M2), the gated short convolution (C).",
    "notation": "An architecture as text: operators in their order, {3} for three repeats, [...] for settings.",
    "answer set": "One way to make all the choices that a space leaves open. It gives one architecture; two may give "
    "the same.",
    "candidate": "An architecture that was evaluated: trained for a short time, its latency estimated.",
    "dominated": "Another candidate is as good in every objective and better in one.",
    "Pareto front": "The candidates that none dominates: the best trade-offs.",
    "hypervolume": "The size of what the front dominates, up to a fixed corner; it grows as the front gets better.",
    "fidelity": "What a loss was measured with: tokens, sequence, batch, recipe, data. Losses of different fidelity "
    "are never compared.",
    "sized_loss": "The loss corrected for size: less proxy.size_weight nats for each factor of e that a model "
    "has more non-embedding parameters than 10M, as the larger of two with the same loss after a short training ends "
    "lower.",
    "seed": "What the first weights and the order of the data are drawn with. Another seed gives another loss.",
    "finalist": "A candidate that was looked at again after the search, with other seeds.",
    "skipped (refused)": "Proposed and not trained, as it was over a limit or had been evaluated before.",
    "population": "The latest candidates, from which parents are taken; a generation is as many children.",
    "tournament": "How a parent is chosen: some members of the population are drawn at random, the best of them wins.",
    "origin": "How a candidate came about: known (given in the config), random, a mutation of one parent, or a "
    "crossover of two.",
    "latency table": "Measured times of single blocks. An estimate is the sum of a model's blocks.",
    "mean absolute error": "How far estimates are from measurements on average, whichever way. Also MAPE.",
    "Spearman's rho, Kendall's tau": "Whether estimates put models in the order that measurements do: 1 always, 0 not "
    "at all.",
}
