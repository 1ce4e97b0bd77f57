"""The training proxy: the validation loss of a short training run. Torch is imported in the workers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from nfsearch.proxies.bounds import Bounds
from nfsearch.proxies.checkpoints import Checkpoints
from nfsearch.proxies.data import prepare
from nfsearch.proxies.fidelity import Fidelity
from nfsearch.proxies.job import Evaluation, Job, Report
from nfsearch.proxies.proxy import TokenSource
from nfsearch.proxies.settings import BITS_PER_BYTE, LOSS, PERPLEXITY, SIZED_LOSS, TrainingSettings
from nfsearch.proxies.size import sized
from nfsearch.proxies.twin import check_narrowing, narrowed
from nfsearch.space import SearchSpace
from nfsearch.support.metrics import Measurement, Metric
from nfsearch.support.phases import phase

if TYPE_CHECKING:
    from nfsearch.ops.model import HybridLM
    from nfsearch.proxies.needs import Afterwards


class TrainingProxy:
    """See `nfsearch.proxies.trainer`. Losses repeat bit for bit on one machine with one number of threads."""

    Settings = TrainingSettings
    metrics: ClassVar[Sequence[Metric]] = (SIZED_LOSS, LOSS, BITS_PER_BYTE, PERPLEXITY)

    def __init__(self, settings: TrainingSettings, device: str) -> None:
        """Tokenises the data, or finds it done. Raises ValueError for data that cannot be read or is too short."""
        self.settings, self.device = settings, device
        self.checkpoints: Path | None = None  # a folder to keep trunks and weights in
        self.bounds = Bounds()
        self.corpus = prepare(settings)

    @property
    def tokenizer(self) -> str:
        return self.corpus.tokenizer

    @property
    def vocab(self) -> int:
        return self.corpus.vocab

    @property
    def sources(self) -> Sequence[TokenSource]:
        found = []
        total = sum(one.tokens for one in self.corpus.sources)
        for one in self.corpus.sources:
            share = one.tokens / total
            seen = self.settings.tokens * share / one.different
            found.append(TokenSource(one.name, one.tokens, share, one.different, seen))
        return found

    @property
    def fidelity(self) -> Fidelity:
        return self.settings.fidelity(self.corpus.digest, self.device)

    def check(self, space: SearchSpace) -> None:
        if space.vocab < self.vocab:
            raise ValueError(
                f"space.vocab is {space.vocab}; the tokenizer of {self.corpus.name} has {self.vocab} entries"
            )
        check_narrowing(space, self.settings.narrow)

    def start(self) -> None:
        import nfsearch.proxies.trainer  # noqa: F401  (and with it torch)

        self.corpus.verify()

    def bound(self, bounds: Bounds) -> None:
        self.bounds = bounds

    def keep_in(self, folder: Path) -> None:
        self.checkpoints = folder if self.settings.keep_gb else None

    def kept(self, job: Job) -> Path | None:
        return Checkpoints.of(self.checkpoints, job).folder if self.checkpoints else None

    @property
    def most_kept(self) -> float:
        return self.settings.keep_gb * 1e9

    def weights(self, job: Job) -> HybridLM | None:
        from nfsearch.ops.model import HybridLM

        if self.checkpoints is None:
            return None
        model = HybridLM(job.architecture)
        found = Checkpoints.of(self.checkpoints, job).load_weights(job.fidelity.tokens, model)
        return model if found else None

    @property
    def after(self) -> Afterwards | None:
        """What else is asked of the trained model."""
        return None

    def evaluate(self, job: Job, report: Report) -> Evaluation:
        return self.train(job, report)[1]

    def train(self, job: Job, report: Report | None = None) -> tuple[HybridLM, Evaluation]:
        """The model of a job (of its narrowed twin, at such a fidelity), trained, and its evaluation. Raises OSError on
        a machine that does not have the tokens, TooLarge before it begins where it would not end well."""
        from nfsearch.proxies.trainer import train_model

        with phase("data"):
            self.corpus.verify()
        settings, tokens = self.settings, job.fidelity.tokens
        if job.fidelity != settings.fidelity(self.corpus.digest, self.device, tokens):
            raise ValueError(f"these settings cannot train at {job.fidelity}")
        architecture = job.architecture
        size = architecture.non_embedding_parameters  # the candidate's own, whose worth a twin's loss tells
        if settings.narrow > 1:
            architecture = narrowed(architecture, settings.narrow, self.vocab)
        model, found = train_model(
            architecture,
            self.corpus,
            settings,
            seed=job.seed,
            device=self.device,
            tokens=tokens,
            checkpoints=Checkpoints.of(self.checkpoints, job) if self.checkpoints else None,
            report=report,
            bounds=self.bounds,
            after=self.after,
        )
        corrected = Measurement(float(sized(found.metrics[LOSS.name].value, size, settings.size_weight)))
        return model, replace(found, metrics={SIZED_LOSS.name: corrected, **found.metrics})
