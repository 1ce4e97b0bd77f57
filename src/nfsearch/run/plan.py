"""What a search is given: read, found right, and made ready before anything is written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nfsearch.latency_lut import LatencyTable, keys_for
from nfsearch.latency_lut.verification import known_verification
from nfsearch.proxies import Keeps, Proxy
from nfsearch.run.config import Config, load_config
from nfsearch.run.hours import tell_hours
from nfsearch.run.metrics import energy_of, require_power
from nfsearch.run.records import CONFIG, JOURNAL, STUDY, fingerprint
from nfsearch.run.tables import budgets_of, check_layers, given_table, is_here, proxy_of, training_kind
from nfsearch.run.weights import WEIGHTS
from nfsearch.run.yaml_file import YamlFile
from nfsearch.search import EXECUTORS, RULES, STRATEGIES, Budgets, Executor, History, Problem, Rule, Strategy
from nfsearch.search.known import fitting, locate
from nfsearch.search.strategy import Draft
from nfsearch.search.study import require_same
from nfsearch.space import SearchSpace


@dataclass(frozen=True)
class Beginning:
    """The limits as a table tells them, the strategy within them, and what there is to say about that."""

    budgets: Budgets
    strategy: Strategy
    warnings: Sequence[str]


@dataclass(frozen=True)
class Plan:
    """Everything that a search is given, read and found right."""

    config: Config
    file: YamlFile
    folder: Path
    device: str  # what candidates are evaluated on, "cpu" or "cuda"
    proxy: Proxy
    space: SearchSpace
    resumed: bool  # the folder holds the run's beginning
    table: LatencyTable | None  # None: measured at the start
    known: Sequence[Sequence[Draft]]  # members of the space that each known design stands for
    executor: Executor

    def begin(self, table: LatencyTable | None) -> Beginning:
        """What a search begins with once there is a table. Raises ValueError where no member of the space keeps the
        limits, without a table those on sizes, and where it does not know what the objectives or limits ask for."""
        search, names = self.config.search, self.config.objective_names
        if table is not None:
            require_power({*names, *self.config.limit_values.most}, self.config.latency.workloads, table)
        budgets = budgets_of(self.config, table)
        known, left_out = fitting(self.known, budgets)
        problem = Problem(self.space, budgets, names, self.proxy.fidelity, search.seed, known)
        return Beginning(budgets, STRATEGIES.find(search.strategy)(problem, search), left_out)

    def rule(self) -> Rule | None:
        settings = self.config.rule
        return RULES.find(settings.kind)(settings) if settings else None


def read_plan(config_path: Path | None, out: Path | None, resume: Path | None, assignments: Sequence[str]) -> Plan:
    """Reads all input and checks what can be checked before any work: for a new run that of a config, to be written to
    `out`; for one to be resumed that of its own folder. Raises ValueError or OSError."""
    if resume is not None:
        if config_path or out:
            raise ValueError(f"--resume {resume} goes on with the config in {resume}: leave CONFIG and --out out")
        config, file = _resumed(resume, assignments)
        folder = resume
    elif config_path is not None:
        config, file = load_config(config_path, assignments)
        folder = _folder(config_path, out)
    else:
        raise ValueError("expected a config to begin with, nfsearch run CONFIG, or a run: nfsearch run --resume DIR")
    tell_hours(config, training_kind(config))  # before the proxy reads its data, which may take long
    with _of_the_proxy(config, file):
        proxy = proxy_of(config)
    space = config.space.build(proxy.vocab)
    check_layers(config, space)
    with _of_the_proxy(config, file):
        proxy.check(space)
    known = locate(space, config.search.seeds_known)
    if isinstance(proxy, Keeps):
        proxy.keep_in(folder.resolve() / WEIGHTS)
    table = given_table(config)
    kind, workers = training_kind(config), config.workers
    executor = EXECUTORS.find(workers.executor)(workers, proxy, kind)
    plan = Plan(config, file, folder, kind, proxy, space, resume is not None, table, known, executor)
    if table is not None:
        keys = keys_for(space, config.latency.workloads, config.latency.dtype_on(table.provenance.kind))
        table.require(keys, config.latency.accept)
        if not (config.latency.verify and is_here(config)):
            known_verification(table)  # raises if it cannot be read: the run will tell what it says
    elif plan.device == "cpu":
        _require_of_a_cpu(config)
    plan.begin(table).strategy.propose(0, History())  # raises if no member keeps the limits
    return plan


@contextmanager
def _of_the_proxy(config: Config, file: YamlFile) -> Iterator[None]:
    """Has a complaint about the proxy, or one of those beside it, name the line of the config."""
    try:
        yield
    except ValueError as error:
        text = str(error).removeprefix("proxy.")
        beside = text.partition(".")[0]
        raise ValueError(file.complaint(["also", beside] if beside in config.others else ["proxy"], text)) from None


def _require_of_a_cpu(config: Config) -> None:
    """Raises ValueError for what no table of a CPU knows: an energy, and a throughput at as many sequences as fit into
    its memory."""
    energies = {energy_of(name) for name in config.latency.workloads}
    if asked := energies.intersection((*config.objective_names, *config.limit_values.most)):
        raise ValueError(f"{', '.join(sorted(asked))}: the power of a CPU is not measured, so no energy is known")
    for name, workload in config.latency.workloads.items():
        if workload.phase == "throughput" and workload.memory_gb is None:
            raise ValueError(f"latency.workloads.{name}: on a CPU a throughput needs memory_gb, how much may be taken")


def _resumed(folder: Path, assignments: Sequence[str]) -> tuple[Config, YamlFile]:
    """The config of a run's folder, where it began; what decides results cannot be assigned anew."""
    if not (folder / CONFIG).is_file() or not any((folder / name).is_file() for name in (JOURNAL, STUDY)):
        raise ValueError(f"{folder}: there is no run to resume")
    begun, file = load_config(folder / CONFIG)
    if not assignments:
        return begun, file
    config, file = load_config(folder / CONFIG, assignments)
    then, now = ({**fingerprint(each), "storage": each.storage} for each in (begun, config))
    require_same(then, now, folder)
    return config, file


def _folder(config_path: Path, out: Path | None) -> Path:
    """Where a new run is written: `out`, or runs/NAME, made unique."""
    if out is None:
        name = config_path.parent.resolve().name if config_path.stem == "config" else config_path.stem
        if name in ("", ".", ".."):
            raise ValueError(f"{config_path} gives no name to the folder of its run: --out DIR says where to write it")
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(folder for each in names if not (folder := Path("runs", each)).exists())
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    if out.exists() and any(out.iterdir()):
        again = f"go on with its run (--resume {out})" if (out / CONFIG).is_file() else "remove what is there"
        raise ValueError(f"{out} is not empty: {again}, or write to another folder (--out)")
    return out
