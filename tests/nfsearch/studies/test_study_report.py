"""The report of a study whose losses are made up."""

from __future__ import annotations

import math
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nfsearch.proxies import Fidelity
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.report import favourites
from nfsearch.space import Architecture
from nfsearch.studies import agreement
from nfsearch.studies.config import load_study
from nfsearch.studies.draw import operators, read_architectures
from nfsearch.studies.journal import read
from nfsearch.studies.predictors import of_operators, predictors, truth_of
from nfsearch.studies.report import write_report
from nfsearch.studies.results import results
from nfsearch.studies.size import wanted_weight
from tests.nfsearch.studies.made_up import Loss, made_up_study
from tests.nfsearch.studies.tiny import study_config

FILES = ("results.parquet", "predictors.csv", "operators.csv", "favourites.json", "report.md", "figure.png")


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "RESAMPLES", 100)


def noise(*parts: object) -> float:
    """Between -1 and 1, the same for the same parts."""
    return random.Random(repr(parts)).uniform(-1, 1)


def quality(number: int) -> float:
    return 0.4 * noise("quality", number)


def reference(number: int, design: Architecture, tokens: int, seed: int) -> float:
    """At few tokens nearly noise; a power law in the tokens."""
    early = 1.5 * noise("early", number) * (1e6 / tokens)
    return 3 + quality(number) + (tokens / 1e6) ** -0.5 + early + 0.01 * noise(number, tokens, seed)


def good(number: int, design: Architecture, tokens: int, seed: int) -> float:
    return 3.5 + quality(number) + 0.05 * noise("good", number, tokens, seed)


def partisan(number: int, design: Architecture, tokens: int, seed: int) -> float:
    """For Mamba2."""
    return good(number, design, tokens, seed) - 0.5 * (operators(design)["M2"] > 0)


def fails(number: int, design: Architecture, tokens: int, seed: int) -> float:
    return math.nan if number % 4 == 0 else good(number, design, tokens, seed)


RECIPES = {"long": reference, "good": good, "partisan": partisan, "fails": fails}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_up_study(tmp_path_factory.mktemp("made") / "up", 30, RECIPES, more_seeds=8)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(agreement, "RESAMPLES", 100)
        write_report(folder)
    return folder


def test_the_report_names_the_cheapest_budget_that_is_believed(folder: Path) -> None:
    """One that orders well, and whose first choice is as good as the best: at 1M and 2M tokens it is not."""
    text = (folder / "report.md").read_text()
    assert "Use this budget: good at 4M tokens (4 s a candidate, the median). Spearman 0.9" in text
    assert "reaches 0.85 with first choices, of all and of half, within 2 seed deviations of the true best." in text
    table = pd.read_csv(folder / "predictors.csv").set_index(["predictor", "tokens_m"])
    assert (table.loc[("good", slice(None)), "spearman"] > 0.85).all()
    far = table.loc[("good", slice(None)), ["regret_first_sd", "regret_first_of_half_sd"]].max(axis=1)
    assert far.gt(2).tolist() == [False, True, True]
    assert "The long training is long at 16M tokens: 30 architectures" in text
    assert "4 to 24 layers" in text


def test_the_report_tells_how_good_the_proxy_of_the_config_is(folder: Path, tmp_path: Path) -> None:
    assert "proxy of this study's config" not in (folder / "report.md").read_text()  # of no budget of the study
    mine = shutil.copytree(folder, tmp_path / "mine")
    text = (mine / "config.yaml").read_text().replace("tokens: 1024", "tokens: 2000000")
    (mine / "config.yaml").write_text(text + "objectives: [loss, tpot]\n")
    write_report(mine)
    said = (mine / "report.md").read_text()
    assert "Use this budget: good at 4M tokens" in said
    assert "The proxy of this study's config is good at 2M tokens (2 s a candidate, the median): Spearman 0.9" in said
    assert "Mean rank errors of good at 2M tokens" in said


def test_every_predictor_has_a_row_and_the_reference_none(folder: Path) -> None:
    table = pd.read_csv(folder / "predictors.csv").set_index(["predictor", "tokens_m"])
    assert ("long", 16.0) not in table.index
    assert table.loc[("good", 4.0), "spearman"] > 0.9 > table.loc[("partisan", 4.0), "spearman"]
    assert table.loc[("long", 4.0), "spearman"] > table.loc[("long", 1.0), "spearman"]
    assert table.loc[("long, extrapolated", 4.0), "architectures"] == 30
    assert table.loc[("long, curve", 2.0), "architectures"] == 30
    assert {"most parameters", "most FLOPs", "most layers"} <= set(table.index.get_level_values(0))
    assert table.loc[("good", 1.0), "seed_spread"] == pytest.approx(0.05 / 3**0.5, rel=0.6)
    assert table.loc[("fails", 1.0), "architectures"] == 30  # a candidate that diverges comes last, in a search too
    assert table.loc[("fails", 4.0), "spearman"] < 0.7


def test_a_favourite_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = report_of(tmp_path / "only", partisan)
    assert "Beware: it places M2" in said
    assert "of the list too high." in said
    assert "No budget reaches a Spearman of 0.85. The nearest is partisan" in said
    # ... and to runs whose proxy has the settings of that recipe and budget.
    monkeypatch.setattr(favourites, "_shipped", lambda: found)
    found = favourites.FILE.validate_json((tmp_path / "only" / favourites.FAVOURITES).read_bytes())
    same = Fidelity(2_000_000, 32, 8, "partisan", "other data")
    sentence = favourites.sentence(favourites.studied(["loss", "tpot"], same, 0.19))
    assert sentence.startswith("Beware: the proxy favours some operators: it places ")
    assert re.search(r"M2 \d\d% of the list too high \(95 %: \d+% to \d\d%\)", sentence)
    assert sentence.endswith("in a study of 30 architectures against 16,000,000 tokens of training.")
    beside = replace(same, recipe="partisan; mqar: of pairs 8")
    by_loss, by_size = (favourites.studied([name], same, 0.19) for name in ("loss", "sized_loss"))
    assert by_loss == favourites.studied(["loss"], beside, 0.19) == favourites.studied(["loss", "sized_loss"], same, 1)
    assert by_loss != by_size == favourites.studied(["sized_loss", "loss"], same, 0.19)
    assert favourites.studied(["sized_loss"], same, 1.0) is None  # nobody studied that correction
    assert favourites.studied(["tpot"], same, 0.19) is None
    for change in ({"tokens": 3_000_000}, {"twin": 2}, {"recipe": "another"}, {"batch": 4}):
        assert favourites.studied(["loss"], replace(same, **change), 0.19) is None  # type: ignore[arg-type]
    by_chance = {"A": favourites.Bias(error=0.4, low=-0.1, high=0.9)}
    fair = favourites.Favourites(metric="loss", fidelity=same, tokens=9, architectures=20, operators=by_chance)
    assert "places no operator more than 10% of the list too high or too low" in favourites.sentence(fair)
    few = fair.model_copy(
        update={"architectures": 5, "operators": {"A": favourites.Bias(error=0.4, low=0.4, high=0.4)}}
    )
    assert few.told() == []
    assert "is not known yet: 5 architectures have been studied, and 20 are the fewest" in favourites.sentence(few)
    assert (
        favourites.sentence(None)
        == "Whether this proxy favours some operators was not studied; `nfsearch study fidelity` would tell."
    )


def test_the_size_corrects_a_loss_that_small_models_are_quick_to_reach(tmp_path: Path) -> None:
    def quick(number: int, design: Architecture, tokens: int, seed: int) -> float:
        return good(number, design, tokens, seed) + (
            0.19 * math.log(design.non_embedding_parameters) if tokens < 16_000_000 else 0
        )

    said = report_of(tmp_path / "up", quick)
    assert "Use this budget: partisan, sized at 1M tokens" in said
    fitted = re.search(r"size_weight is 0.19; fitted to these architectures it is (\S+)\.\n", said)
    assert float(fitted[1]) == pytest.approx(0.19, abs=0.03)
    table = pd.read_csv(tmp_path / "up" / "predictors.csv").set_index(["predictor", "tokens_m"])
    assert table.loc[("partisan, sized", 1.0), "spearman"] > 0.9 > table.loc[("partisan", 1.0), "spearman"]


def test_the_weight_that_a_study_wants_is_a_fit() -> None:
    numbers = range(12)
    short = pd.Series([4 + 0.1 * noise("s", n) for n in numbers])
    parameters = pd.Series([10.0 ** (7 + 0.1 * n) for n in numbers])
    exact = 1 + 0.5 * short - 0.1 * np.log(parameters)
    assert wanted_weight(short, parameters, exact) == pytest.approx(0.2)
    assert wanted_weight(short[:7], parameters, exact) is None  # too few
    assert wanted_weight(short, parameters, -exact) is None  # the better short, the worse long
    exact[3], short[4] = math.inf, math.inf
    assert wanted_weight(short, parameters, exact) == pytest.approx(0.2)


def test_the_best_rate_of_each_architecture_is_told(tmp_path: Path) -> None:
    def at(rate: float) -> Loss:
        def loss(number: int, design: Architecture, tokens: int, seed: int) -> float:
            if number == 8:
                return math.nan  # at every rate
            best = 0.08 if number == 7 else 0.02
            return 3 + number / 10 + abs(math.log2(rate / best)) + (number == 3) * (rate == 0.08)

        return loss

    rates = {"rule": 0.02, "half": 0.01, "twice": 0.04, "four times": 0.08}
    folder = made_up_study(tmp_path / "up", 9, {name: at(rate) for name, rate in rates.items()})
    text = (folder / "config.yaml").read_text()
    for name, rate in rates.items():
        text = text.replace(f"    {name}:\n", f"    {name}:\n      learning_rate: {rate}\n")
    (folder / "config.yaml").write_text(text)
    assert {folder / "rates.csv", folder / "rates.png"} <= set(write_report(folder))
    assert (folder / "rates.png").read_bytes().startswith(b"\x89PNG")
    said = (folder / "report.md").read_text()
    assert (
        "Best rate by architecture, at 4,000,000 tokens: 0.01 for 0, 0.02 for 7, 0.04 for 0, 0.08 for 1 of 8; "
        "within 2 times the rule's 0.02 for 7 of 8.\n"
        "For 1 the best is the largest rate that was tried: theirs may lie beyond." in said
    )
    assert "8 architectures are too few to advise a budget. So far " in said
    assert "how much a seed moves them is unknown, as each has one." in said
    table = pd.read_csv(folder / "rates.csv")
    assert list(table["best_rate"]) == [0.02] * 7 + [0.08]
    assert table.loc[7, "loss_at_0.08"] == pytest.approx(3.7)
    by_loss, by_sized_loss = (line for line in said.splitlines() if line.startswith("| 0.01 |"))
    assert by_loss.startswith("| 0.01 |  | 1.00 (1.00 to 1.00) |")
    assert by_sized_loss.startswith("| 0.01 |  | 1.00 (1.00 to 1.00) |")


def test_what_is_shipped_of_favourites_is_what_the_committed_study_found(tmp_path: Path) -> None:
    """After another sitting: `nfsearch study report DIR`, then copy its favourites.json to src/nfsearch/report."""
    experiment = Path(__file__).parents[3] / "experiments/fidelity"
    folder = shutil.copytree(experiment / "study", tmp_path / "study")
    shutil.copy(experiment / "config.yaml", folder)
    config = load_study(folder / "config.yaml")
    frame = results(read_architectures(folder), read(folder))
    truth = truth_of(frame, config.study.reference.recipe, config.study.reference.tokens)
    settings = TrainingSettings()
    default = settings.fidelity("", "cuda")
    shipped = favourites.studied(["sized_loss"], default, settings.size_weight)
    assert shipped is not None
    every = predictors(frame, truth, {}, {"default": settings.size_weight})
    predictor = next(each for each in every if (each.kind, each.tokens) == ("sized", default.tokens))
    found = of_operators(predictor, truth)
    assert shipped.architectures == len(predictor.scores.index.intersection(truth.order.index))
    assert {name: each.error for name, each in shipped.operators.items()} == {
        name: round(each.value, 4) for name, each in found.items()
    }


def report_of(folder: Path, recipe: Callable[..., float]) -> str:
    """Of a study with a reference at one budget and one recipe beside it."""

    def late(number: int, design: Architecture, tokens: int, seed: int) -> float:
        return 3 + (quality(number) if tokens == 16_000_000 else noise("late", number, tokens))

    made_up_study(folder, 30, {"long": late, "partisan": recipe})
    write_report(folder)
    return (folder / "report.md").read_text()


def test_the_results_are_one_parquet_file(folder: Path) -> None:
    frame = pd.read_parquet(folder / "results.parquet")
    assert len(frame) == (30 + 2 * 8) * 13
    row = frame[(frame["recipe"] == "good") & (frame["tokens"] == 4_000_000)].iloc[0]
    assert row["loss"] == good(int(row["number"]), None, 4_000_000, int(row["seed"]))  # type: ignore[arg-type]
    assert row["training_loss"] == pytest.approx(row["loss"] + 0.1)
    assert len(row["curve_tokens"]) == len(row["curve_losses"]) == 10
    counts = [name for name in frame if name.startswith("layers_")]
    assert (frame[counts].sum(axis=1) == frame["depth"]).all()
    assert (frame["flops_per_token"] > 2 * 257 * frame["width"]).all()
    assert set(frame.loc[frame["state"] == "diverged", "recipe"]) == {"fails"}


def test_the_command_line_writes_the_report_anew(folder: Path, command: Callable[..., tuple[str, str]]) -> None:
    (folder / "report.md").unlink()
    out, _ = command("study", "report", folder)
    *paths, advice, choices = out.splitlines()
    assert paths == [str(folder / name) for name in FILES]
    assert advice.startswith("Use this budget: good at 4M tokens")
    assert choices.startswith("Its first choice is ")
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.md").is_file()


def test_a_study_without_its_reference_says_so(tmp_path: Path) -> None:
    folder = made_up_study(tmp_path / "up", 30, RECIPES)
    lines = [line for line in (folder / "share-1-of-1.journal").read_text().splitlines() if "16000000" not in line]
    (folder / "share-1-of-1.journal").write_text("\n".join(lines))
    with pytest.raises(
        ValueError, match="fewer than 3 architectures have the loss of the reference, long at 16,000,000"
    ):
        write_report(folder)
    assert not (folder / "report.md").exists()
    with pytest.raises(ValueError, match="holds no study"):
        write_report(study_config(tmp_path).parent)
