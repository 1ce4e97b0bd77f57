"""The settings of the training proxy: what a candidate is trained on, and for how long."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from typing_extensions import Self

from nfsearch.proxies.bounds import PEAK, flops_of_weights
from nfsearch.proxies.fidelity import Fidelity
from nfsearch.proxies.proxy import ProxySettings
from nfsearch.proxies.sources import Data, SplitData, paths_of, renamed
from nfsearch.proxies.tokenizers import load_tokenizer
from nfsearch.space import Architecture
from nfsearch.support.files import local_path
from nfsearch.support.metrics import NATS, Metric

LOSS = Metric("loss", NATS)
BITS_PER_BYTE = Metric("bits_per_byte")
PERPLEXITY = Metric("perplexity")
SIZED_LOSS = Metric("sized_loss", NATS)
_NAMES = ("bytes", "python-stdlib")  # of tokenizers and data; no files, whatever lies there
_SMALLEST_BPE = 257  # every byte, and the end of a document
_LARGEST_BPE = 2**20  # four times what the largest published models have


def _rising(value: tuple[int, ...]) -> tuple[int, ...]:
    if list(value) != sorted(set(value)):
        raise ValueError(f"expected rising numbers of tokens, found {list(value)}")
    return value


Tokens = Annotated[int, Field(gt=0, le=10**12)]
RisingTokens = Annotated[tuple[Tokens, ...], AfterValidator(_rising)]
_LARGEST_STEP = 2**24  # tokens; the largest models are trained in steps of this size


class TrainingSettings(ProxySettings):
    """A short training run whose validation loss ranks architectures."""

    data: Data = Field(
        default="python-stdlib",
        description="python-stdlib, a file or folder (text, JSONL, Parquet; also .xz or .gz), hf:NAME, hf:NAME:CONFIG; "
        "a mixture [{path: ..., weight: 2}, ...] of these; or {train: ..., validation: ...}; undivided data is split "
        "by a hash of its documents",
    )
    tokenizer: str = Field(default="bytes", description="bytes, bpe:VOCAB (trained on the data), or a tokenizer.json")
    tokens: int = Field(default=12_000_000, gt=0, le=10**12, description="training tokens per candidate")
    sequence: int = Field(default=512, gt=1, le=2**20, description="tokens in a training sequence")
    batch: int = Field(default=16, gt=0, le=2**16, description="sequences in a step")
    micro_batch: int | None = Field(
        default=None,
        gt=0,
        le=2**16,
        description="sequences computed at a time, whose gradients are added up; null = all of a step's, or on a GPU "
        "whose memory is too small for that the half, a quarter ... of them",
    )
    recompute: bool = Field(
        default=False,
        description="compute each layer again in the backward pass (activation checkpointing): far less memory for a "
        "third more time, and the same losses",
    )
    optimizer: Literal["muon", "adamw"] = Field(
        default="muon", description="muon: Muon for the matrices of the operators, AdamW for the rest; or AdamW alone"
    )
    learning_rate: float = Field(default=2e-2, gt=0, le=10, description="peak learning rate")
    schedule: Literal["trunk", "cosine"] = Field(
        default="trunk",
        description="trunk: constant after the warm-up, then a linear decay to zero, so that one "
        "training serves several budgets; or a cosine to a tenth",
    )
    warmup: float = Field(
        default=0.025, ge=0, lt=1, description="share of `tokens` spent warming up, also by longer trainings"
    )
    decay: float = Field(default=0.2, gt=0, le=1, description="share of a trunk's budget during which the rate decays")
    rungs: RisingTokens = Field(
        default=(), max_length=64, description="smaller budgets, in tokens, at which the loss is measured on the way"
    )
    output_scale: Literal["one", "depth"] = Field(
        default="one",
        description="length to which weight normalization projects the columns of matrices that add to "
        "the hidden features: 1, or 1 / sqrt(layers)",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, le=10, description="weight decay of matrices; 0 goes with weight normalization"
    )
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    weight_norm: bool = Field(
        default=True, description="project weights to unit norm after each step, as Nemotron-Flash does"
    )
    narrow: int = Field(
        default=1,
        ge=1,
        le=2**16,
        description="train a twin of each candidate, for designs too large for this machine: the same operators, the "
        "width and the sizes of heads and states divided by this, the tokenizer's vocabulary; 1 = the candidate itself",
    )
    keep_gb: float = Field(
        default=10,
        ge=0,
        le=1e6,
        description="trained weights that a run keeps, in 1e9 bytes: those of the front, and of "
        "others while there is room; 0 = none",
    )
    size_weight: float = Field(
        default=0.19,
        ge=0,
        le=10,
        description="nats that sized_loss is below the loss for each factor of e that a model has more "
        "non-embedding parameters than 10M, as the larger of two with one loss after few tokens ends lower: what 12M "
        "tokens of English want",
    )
    validation_tokens: int = Field(default=200_000, gt=0, le=10**10, description="tokens of the fixed validation set")

    @field_validator("data")
    @classmethod
    def _possible_data(cls, value: Data) -> Data:
        for text in paths_of(value):
            local_path(text)
        for mixture in (value.train, value.validation) if isinstance(value, SplitData) else (value,):
            paths = paths_of(mixture)
            if not paths:
                raise ValueError("a mixture has at least one source")
            if twice := next((path for path in paths if paths.count(path) > 1), None):
                raise ValueError(f"{twice} is listed twice in a mixture")
        return value

    @field_validator("tokenizer")
    @classmethod
    def _known_tokenizer(cls, value: str) -> str:
        if not value.startswith("bpe:"):
            local_path(value)
            return value
        size = value.removeprefix("bpe:")
        known = size.isascii() and size.isdigit() and len(size) < 10
        if not (known and _SMALLEST_BPE <= int(size) <= _LARGEST_BPE):
            raise ValueError(
                f"expected bpe:VOCAB with a number from {_SMALLEST_BPE} to {_LARGEST_BPE}, found {value!r}"
            )
        return value

    @model_validator(mode="after")
    def _possible_rungs(self) -> Self:
        if self.rungs and self.schedule != "trunk":
            raise ValueError(f"rungs need `schedule: trunk`: a {self.schedule} serves one budget")
        if self.rungs and self.rungs[-1] >= self.tokens:
            raise ValueError(f"the last rung, {self.rungs[-1]:,} tokens, is not below `tokens`, {self.tokens:,}")
        return self

    @model_validator(mode="after")
    def _possible_step(self) -> Self:
        if (step := self.batch * self.sequence) > _LARGEST_STEP:
            raise ValueError(
                f"a step of {self.batch} sequences of {self.sequence} tokens has {step:,} tokens: "
                f"expected up to {_LARGEST_STEP:,}"
            )
        return self

    def anchored(self) -> Self:
        return self.model_copy(update={"data": renamed(self.data, _anchored), "tokenizer": _anchored(self.tokenizer)})

    @property
    def vocabulary(self) -> int:
        """The tokenizer's size; what it was asked for where it is yet to be trained."""
        name, _, size = self.tokenizer.partition(":")
        return int(size) if name == "bpe" else load_tokenizer(self.tokenizer).vocab

    def least_seconds(self, architecture: Architecture, device: str) -> float:
        parameters = architecture.parameters / self.narrow**2  # about, as the twin's vocabulary is not narrowed
        return flops_of_weights(parameters, self.tokens) / PEAK[device]

    def fidelity(self, data: str, device: str, tokens: int | None = None) -> Fidelity:
        """What a loss is measured with, on data of this digest and a device of this kind, "cpu" or "cuda"; after so
        many tokens, by default `self.tokens`."""
        ends = f"decay {self.decay:g}" if self.schedule == "trunk" else "cosine"
        recipe = [
            f"{self.optimizer} {self.learning_rate:g}",
            f"warm-up {self.warmup * self.tokens:g}",
            ends,
            f"weight decay {self.weight_decay:g}",
            f"clip {self.clip:g}",
            f"weight norm {f'to {self.output_scale}' if self.weight_norm else 'off'}",
            f"validation {self.validation_tokens}",
            "bf16" if device == "cuda" else "fp32",
        ]
        return Fidelity(tokens or self.tokens, self.sequence, self.batch, ", ".join(recipe), data, self.narrow)


def _anchored(text: str) -> str:
    if text in _NAMES or text.startswith(("bpe:", "hf:")):
        return text
    path = local_path(text)
    return str(path.resolve()) if path.exists() else text
