"""Comparing runs: the statistics against rliable's, the reading of run directories, table and picture."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from surgery.cli import main
from surgery.compare import bootstrap, compare, figure, iqm, probability_of_improvement, profile, read_run
from surgery.errors import ArgumentError, CorruptFile, FileError

RNG = np.random.default_rng(0)
SCORES = {
    "five seeds, one game": RNG.normal(1.0, 0.3, (5, 1)),
    "three seeds, ten games": RNG.gamma(2.0, 0.5, (3, 10)),
    "ten seeds, four games": RNG.normal(0.8, 0.5, (10, 4)),
    "ties": RNG.integers(0, 3, (6, 3)).astype(float),
}


@pytest.fixture(scope="module")
def rliable():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rliable import library, metrics
    return library, metrics


def games(scores):
    return list(scores.T)


@pytest.mark.parametrize("case", SCORES)
def test_the_interquartile_mean_is_rliables(rliable, case):
    _, metrics = rliable
    scores = SCORES[case]
    assert iqm(scores.reshape(-1)) == pytest.approx(metrics.aggregate_iqm(scores), abs=1e-12)
    samples = np.random.default_rng(1).permuted(np.repeat(scores.reshape(1, -1), 7, axis=0), axis=1)
    assert iqm(samples) == pytest.approx([metrics.aggregate_iqm(row[None]) for row in samples])


@pytest.mark.parametrize("case", SCORES)
def test_the_interval_of_the_iqm_is_rliables_up_to_chance(rliable, case):
    library, metrics = rliable
    scores = SCORES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, bounds = library.get_interval_estimates(
            {"a": scores},
            lambda x: np.array([metrics.aggregate_iqm(x)]),
            reps=2000,
            random_state=np.random.RandomState(0),
        )
    ours = bootstrap(games(scores), iqm, samples=20_000)
    assert ours.value == pytest.approx(values["a"][0])
    # the 2.5% quantile of 2,000 draws, whose own error is that of their density there
    width = bounds["a"][1, 0] - bounds["a"][0, 0]
    assert (ours.low, ours.high) == (
        pytest.approx(bounds["a"][0, 0], abs=0.12 * width),
        pytest.approx(bounds["a"][1, 0], abs=0.12 * width),
    )


@pytest.mark.parametrize("case", SCORES)
def test_the_iqm_of_rliables_own_samples_is_ours(rliable, case):
    """Sample by sample: the same draws, the same numbers."""
    library, metrics = rliable
    scores = SCORES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = library.StratifiedBootstrap(scores, random_state=np.random.RandomState(0))
    drawn = [data[0][0] for data in draws.bootstrap(40)]
    wanted = [metrics.aggregate_iqm(one) for one in drawn]
    assert iqm(np.stack([one.reshape(-1) for one in drawn])) == pytest.approx(wanted)


@pytest.mark.parametrize("case", SCORES)
def test_the_probability_of_improvement_is_rliables(rliable, case):
    library, metrics = rliable
    x = SCORES[case]
    y = np.round(x[::-1] * 0.8 + 0.1, 1) if case != "ties" else x[1:5, ::-1]
    wanted = metrics.probability_of_improvement(x, y)
    ours = probability_of_improvement(games(x), games(y), samples=4000)
    assert ours.value == pytest.approx(wanted)
    other = probability_of_improvement(games(y), games(x))
    assert ours.value + other.value == pytest.approx(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, bounds = library.get_interval_estimates(
            {"a,b": (x, y)},
            metrics.probability_of_improvement,
            reps=200,
            random_state=np.random.RandomState(0),
        )
    assert ours.low == pytest.approx(float(bounds["a,b"][0, 0]), abs=0.08)
    assert ours.high == pytest.approx(float(bounds["a,b"][1, 0]), abs=0.08)


@pytest.mark.parametrize("case", SCORES)
def test_the_performance_profile_is_rliables(rliable, case):
    library, _ = rliable
    thresholds, scores = np.linspace(0, 2, 9), SCORES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted, _ = library.create_performance_profile({"a": scores}, thresholds, reps=10)
        _, bounds = library.get_interval_estimates(
            {"a": scores},
            lambda x: np.array([(x > threshold).mean() for threshold in thresholds]),
            reps=400,
            random_state=np.random.RandomState(0),
        )
    share, low, high = profile(games(scores), thresholds)
    assert share == pytest.approx(wanted["a"])
    step = 1 / scores.size  # shares move in steps of one run
    assert low == pytest.approx(bounds["a"][0], abs=step + 0.02)
    assert high == pytest.approx(bounds["a"][1], abs=step + 0.02)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    truth, held = 0.5, 0
    for seed in range(300):
        scores = np.random.default_rng(seed).uniform(0, 1, (10, 5))
        found = bootstrap(games(scores), iqm, samples=400, seed=seed)
        held += found.low <= truth <= found.high
    assert 0.88 < held / 300 < 0.99  # the percentile interval of few runs is a little narrow


def test_games_may_have_different_numbers_of_runs():
    uneven = [np.array([1.0, 2.0, 3.0]), np.array([2.0])]
    found = bootstrap(uneven, iqm)
    assert found.value == 2.0
    assert 1.0 <= found.low <= found.high <= 3.0


def test_one_run_has_no_interval():
    found = bootstrap([np.array([1.5])], iqm)
    assert (found.value, found.low, found.high) == (1.5, None, None)
    assert probability_of_improvement([np.array([1.0])], [np.array([2.0])]).low is None


def test_two_runs_have_an_interval_where_all_others_have_one():
    two, one = np.array([1.0, 3.0]), np.array([2.0])
    assert bootstrap([two], iqm).to_json() == [2.0, 1.0, 3.0]
    for found in (
        probability_of_improvement([two], [one]),
        probability_of_improvement([one], [two]),
        probability_of_improvement([two, one], [one, np.array([1.0])]),
    ):
        assert found.low < found.value < found.high


# --- run directories ---


def write_run(
    folder, method, seed, finals, *, game="MinAtar/Breakout-v1", teacher=8.0, budget=50_000, **extra
):
    """A run directory as `surgery distill` writes it."""
    folder.mkdir(parents=True)
    settings = {"method": method, "seed": seed, "budget": budget, "skip": 1, "n_step": 3, **extra}
    config = {"schema": 1, "environment": {"id": game, "settings": {}}, "settings": settings}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"kind": "event", "event": "measured", "seconds": 1.0, "random": 0.5, "teacher": teacher}]
    for k, mean in enumerate(finals):
        frames = k * budget // (len(finals) - 1)
        lines.append({"kind": "train", "frames": frames, "return": mean + 5, "seconds": 2.0 + k, "loss": 0.1})
        found = {"frames": frames, "return": mean, "episodes": 20, "seconds": 9.0 * k}
        lines.append({"kind": "evaluation", "phase": "online", **found})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path):
    for seed in range(5):
        write_run(tmp_path / "q" / f"q{seed}", "qdagger", seed, [2.0, 6.0 + seed / 10, 8.0 + seed / 10])
        write_run(tmp_path / "s" / f"s{seed}", "scratch", seed, [0.5, 1.0 + seed / 10, 3.0 + seed])
    return tmp_path


def test_a_run_is_read_as_it_was_written(runs):
    run = read_run(runs / "q" / "q3")
    assert (run.method, run.game, run.seed, run.budget) == ("qdagger", "MinAtar/Breakout-v1", 3, 50_000)
    assert run.frames.tolist() == [0, 25_000, 50_000]
    assert run.returns.tolist() == [2.0, 6.3, 8.3]
    assert (run.random, run.teacher, run.seconds) == (0.5, 8.0, 18.0)
    skipping = write_run(runs / "four", "scratch", 0, [0.5, 1.0], budget=50_000, skip=4)
    assert read_run(skipping).budget == 200_000  # agent steps of four frames


def test_scores_are_on_one_scale_and_the_best_comes_first(runs):
    done = compare([runs])
    assert [group.name for group in done.groups] == ["qdagger", "scratch"]
    assert (done.scale, done.at) == ("teacher", 50_000)
    qdagger, scratch = done.groups
    assert qdagger.iqm.value == pytest.approx((8.2 - 0.5) / 7.5)  # the middle three of five seeds
    assert scratch.iqm.value == pytest.approx((5.0 - 0.5) / 7.5)
    assert scratch.iqm.low < scratch.iqm.value < scratch.iqm.high
    assert qdagger.frames.tolist() == [0, 25_000, 50_000]
    assert qdagger.curve[0, 0] == pytest.approx(0.2)
    chance = {(one.better, one.than): one.probability.value for one in done.improvements}
    assert chance[("qdagger", "scratch")] == pytest.approx(1 - chance[("scratch", "qdagger")])
    assert done.notes == ()


def test_unfinished_runs_are_compared_where_all_have_got_to(runs):
    write_run(runs / "q" / "q9", "qdagger", 9, [2.0, 6.0], budget=75_000)
    config = json.loads((runs / "q" / "q9" / "config.json").read_text())
    config["settings"]["budget"] = 100_000
    (runs / "q" / "q9" / "config.json").write_text(json.dumps(config))
    done = compare([runs])
    assert done.at == 50_000
    assert any("1 run is not finished" in note for note in done.notes)
    at = compare([runs], at=12_500)
    assert at.groups[0].iqm.value == pytest.approx((4.1 - 0.5) / 7.5, abs=0.01)  # between two evaluations
    late = compare([runs], at=60_000)
    assert [(group.name, len(group.runs)) for group in late.groups] == [("qdagger", 1)]
    assert any("have not taken 60,000 frames" in note for note in late.notes)
    with pytest.raises(ArgumentError, match="no run has taken 200,000 frames"):
        compare([runs], at=200_000)


def test_a_run_that_is_going_on_ends_in_half_a_line(runs):
    with (runs / "q" / "q0" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "evaluation", "fra')
    assert read_run(runs / "q" / "q0").returns.tolist() == [2.0, 6.0, 8.0]


def test_a_run_that_was_not_evaluated_yet_is_left_out_and_said(runs):
    (runs / "q" / "q0" / "metrics.jsonl").write_text("")
    done = compare([runs])
    assert len(done.groups[0].runs) == 4
    assert "1 of 10 runs have not been evaluated yet" in done.notes


def test_several_games_are_averaged_on_their_own_scales(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", "qdagger", seed, [0, 8.0], teacher=8.0)
        write_run(
            tmp_path / f"b{seed}", "qdagger", seed, [0, 100.0], teacher=100.0, game="MinAtar/Freeway-v1"
        )
        write_run(tmp_path / f"c{seed}", "qdagger", seed, [0, 9.0], game="MinAtar/Asterix-v1")
        write_run(tmp_path / f"d{seed}", "scratch", seed, [0, 4.25], teacher=8.0)
        write_run(
            tmp_path / f"e{seed}", "scratch", seed, [0, 50.25], teacher=100.0, game="MinAtar/Freeway-v1"
        )
    done = compare([tmp_path])
    assert done.games == ("MinAtar/Breakout-v1", "MinAtar/Freeway-v1")
    assert [group.iqm.value for group in done.groups] == [pytest.approx(1.0), pytest.approx(0.5)]
    assert any("Asterix" in note for note in done.notes)
    with pytest.raises(ArgumentError, match="cannot be averaged"):
        compare([tmp_path], scale="none")


def test_runs_are_grouped_by_what_is_asked_for(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "old" / f"a{seed}", "qdagger", seed, [0, 4.0])
        write_run(tmp_path / "new" / f"b{seed}", "qdagger", seed, [0, 5.0], n_step=1)
    assert [group.name for group in compare([tmp_path], by="folder").groups] == ["new", "old"]
    assert [group.name for group in compare([tmp_path], by="n_step").groups] == ["n_step=1", "n_step=3"]
    assert [group.name for group in compare([tmp_path], by="method,n_step").groups] == [
        "qdagger n_step=1",
        "qdagger n_step=3",
    ]
    with pytest.raises(ArgumentError, match="2 runs of 'qdagger' have seed 0") as error:
        compare([tmp_path])
    assert error.value.hint == "leave some out, or group by what differs: --by method,n_step"
    with pytest.raises(ArgumentError, match="no setting 'colour'"):
        compare([tmp_path], by="colour")


def test_a_run_in_the_folder_at_hand_lies_in_that_folder(tmp_path, monkeypatch):
    write_run(tmp_path / "mine" / "run", "qdagger", 0, [0, 4.0])
    monkeypatch.chdir(tmp_path / "mine")
    assert [group.name for group in compare([Path("run")], by="folder").groups] == ["mine"]


def test_a_scale_without_its_reference_is_refused(runs, tmp_path):
    with pytest.raises(ArgumentError, match="no human score of MinAtar/Breakout-v1"):
        compare([runs], scale="human")
    with pytest.raises(ArgumentError, match="one of the scales"):
        compare([runs], scale="loud")
    write_run(tmp_path / "x" / "atari", "scratch", 0, [1.7, 30.5], game="ALE/Breakout-v5", teacher=None)
    done = compare([tmp_path / "x"])
    assert (done.scale, done.groups[0].iqm.value) == (
        "human",
        pytest.approx((30.5 - 0.5) / (30.5 - 1.7), abs=0.1),
    )
    assert any("1 run of a method" in note for note in done.notes)


def _broken(runs, how):
    folder = runs / "q" / "q0"
    if how == "line":
        text = (folder / "metrics.jsonl").read_text()
        (folder / "metrics.jsonl").write_text("{nonsense\n" + text)
    elif how == "config":
        (folder / "config.json").unlink()
    elif how == "empty":
        (folder / "metrics.jsonl").write_text("")
    elif how == "binary":
        (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    elif how == "list":
        (folder / "config.json").write_text("[]")
    return folder


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("line", CorruptFile, "line 1"),
        ("config", FileError, "does not exist"),
        ("empty", ArgumentError, "none of the 1 runs has been evaluated yet"),
        ("binary", CorruptFile, "not text"),
        ("list", CorruptFile, "not a JSON object"),
    ],
)
def test_a_damaged_run_says_what_is_wrong(runs, how, error, says):
    with pytest.raises(error, match=says):
        compare([_broken(runs, how)])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileError, match="holds no run"):
        compare([tmp_path])
    with pytest.raises(FileError, match="not a run directory"):
        compare([tmp_path / "missing"])


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_the_verb_prints_a_table_and_draws_a_picture(runs, kind, tmp_path, capsys):
    target = tmp_path / f"out.{kind}"
    words = ["compare", str(runs / "q"), str(runs / "s"), "-o", str(target)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "MinAtar/Breakout-v1 · after 50,000 frames" in text
    shown = [line.split() for line in text.splitlines()[2:4]]
    for group, words_shown in zip(compare([runs / "q", runs / "s"]).groups, shown, strict=True):
        numbers = [f"{x:.3g}" for one in (group.iqm, group.mean) for x in one.to_json()]
        assert words_shown[:2] == [group.name, "5"]
        assert [f"{float(word):.3g}" for word in words_shown[2:] if word != "…"][:6] == numbers
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "html": b"<!doctype html>"}[kind]
    assert target.read_bytes().startswith(begins)
    if kind == "html":
        page = target.read_text()
        assert "<svg" in page
        assert "qdagger" in page
        assert not re.search(r"(src|href)=.https?:|@import|url\(http", page)  # nothing is fetched
    assert main(words) == 2  # nothing is overwritten
    assert main([*words, "--force", "-q"]) == 0


@pytest.mark.parametrize(
    ("teacher", "shift"),
    [(8.0, 0.0), (None, 0.0), (None, -30.0)],
    ids=["scores", "returns", "negative returns"],
)
def test_the_picture_shows_every_curve_every_interval_and_the_share_of_runs_above_each_score(
    teacher, shift, tmp_path
):
    for method, slope in (("qdagger", 0.1), ("scratch", 1.0)):
        for seed in range(5):
            finals = [shift + x for x in (1.0, 2.0, 12.0 * (method == "qdagger") + slope * seed)]
            write_run(tmp_path / f"{method}{seed}", method, seed, finals, teacher=teacher)
    done = compare([tmp_path])
    assert (done.scale, [group.name for group in done.groups]) == (
        "teacher" if teacher else "none",
        ["qdagger", "scratch"],
    )
    curves, finals, profiles = figure.draw(done).axes
    labels = [text.get_text() for text in curves.get_legend().get_texts()]
    assert labels == ["qdagger (5)", "scratch (5)"]
    assert [line.get_ydata()[0] for line in curves.lines[2:]] == [1] * bool(teacher)  # where the teacher is
    assert [text.get_text() for text in finals.get_yticklabels()] == ["qdagger", "scratch"]
    assert finals.get_ylim()[0] > finals.get_ylim()[1]  # the best above
    for k, group in enumerate(done.groups):
        np.testing.assert_array_equal(
            curves.lines[k].get_xydata(), np.stack([group.frames, group.curve[:, 0]], 1)
        )
        band = curves.collections[k].get_paths()[0].vertices
        assert {
            tuple(point)
            for bound in (1, 2)
            for point in zip(group.frames, group.curve[:, bound], strict=True)
        } <= {tuple(point) for point in band}
        interval, middle = finals.lines[2 * k : 2 * k + 2]
        np.testing.assert_array_equal(interval.get_xydata(), [[group.iqm.low, k], [group.iqm.high, k]])
        np.testing.assert_array_equal(middle.get_xydata(), [[group.iqm.value, k]])
        zero, one = done.references["MinAtar/Breakout-v1"]
        scores = np.array([(run.returns[-1] - zero) / (one - zero) for run in group.runs])
        x, share = profiles.lines[k].get_xydata().T
        np.testing.assert_allclose(share, (scores[:, None] > x).mean(0))
        assert (np.diff(x) > 0).all()
        assert share[-1] == 0  # nobody is left out on the right


def test_the_verb_gives_json(runs, capsys):
    assert main(["compare", str(runs), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == 1
    assert [group["name"] for group in report["groups"]] == ["qdagger", "scratch"]
    assert len(report["groups"][0]["runs"]) == 5
    assert report["groups"][0]["iqm"][0] == pytest.approx((8.2 - 0.5) / 7.5)
    assert report["groups"][0]["curve"]["frames"] == [0, 25_000, 50_000]
    assert [point[0] for point in report["groups"][0]["curve"]["iqm"]] == pytest.approx(
        [0.2, 5.7 / 7.5, 7.7 / 7.5]
    )
    assert main(["compare", str(runs), "--json", "--seed", "1"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert [group["iqm"][0] for group in other["groups"]] == [group["iqm"][0] for group in report["groups"]]
    assert other != report  # other draws
    assert main(["compare", str(runs), "-o", "x.pdf"]) == 2
    capsys.readouterr()
    assert main(["compare", str(runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report  # the same seed, the same numbers
