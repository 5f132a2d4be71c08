"""What runs say together, by hand and against SciPy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from scipy import stats

from aligndet.run_files import RunFiles
from aligndet.verdict import T, difference, groups_of, interval, sentence, told_apart


def run(folder, name, start="backbone", ap=10.0, **config):
    """A finished fine-tuning."""
    path = folder / name
    path.mkdir()
    content = {"output_dir": str(path), "seed": 0, "optim": {"lr": 0.1}, **config}
    (path / "config.yaml").write_text(yaml.safe_dump(content))
    lines = [{"step": 5, "loss": 2.0}, {"step": 5, "AP": ap / 2}, {"step": 10, "loss": 1.0}]
    (path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (path / "results.json").write_text(json.dumps({"AP": ap}))
    loaded = ["backbone.conv1.weight"] + ["neck.weight"] * (start == "pre-trained")
    manifest = {"source": "x", "loaded": loaded, "dropped": [], "fresh": []}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return RunFiles.read(path)


def test_a_run_is_read_back(tmp_path):
    found = run(tmp_path, "a")
    assert (found.name, found.start, found.pre_trains) == ("a", "backbone only", False)
    assert found.flat()["optim.lr"] == 0.1
    assert found.curve("loss") == [(5, 2.0), (10, 1.0)]
    assert found.scores() == [(5, 5.0), (10, 10.0)]


def test_a_run_that_still_writes_can_be_read(tmp_path):
    found = run(tmp_path, "a")
    with open(found.path / "metrics.jsonl", "a") as file:
        file.write('\n{"step": 15, "lo')
    (found.path / "results.json").unlink()
    again = RunFiles.read(found.path)
    assert again.lines == found.lines
    assert again.results == {}
    assert again.scores() == [(5, 5.0)]


def test_what_is_no_run_is_said_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="holds no config.yaml and metrics.jsonl; give the output"):
        RunFiles.read(tmp_path)
    found = run(tmp_path, "a")
    (found.path / "metrics.jsonl").write_text('{"step": 1}\nx\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is no JSON"):
        RunFiles.read(found.path)


def test_seeds_belong_together_and_the_backbone_comes_first(tmp_path):
    runs = [
        run(tmp_path, "p0", "pre-trained", 13.0),
        run(tmp_path, "b0", ap=10.0),
        run(tmp_path, "b1", ap=12.0, seed=1),
        run(tmp_path, "p1", "pre-trained", 14.0, seed=1),
    ]
    base, other = groups_of(runs)
    assert (base.title, other.title) == ("backbone only", "pre-trained detector")
    found = difference(base, other)
    assert (found.base, found.other, found.mean, found.pairs) == (11.0, 13.5, 2.5, 2)  # of 3 and 2
    assert found.interval == pytest.approx((2.5 - 12.706 * 0.5, 2.5 + 12.706 * 0.5))
    assert "13.5, 2.5 more than backbone only (11.0). Mean of 2 pairs of runs" in sentence(
        base, other
    )
    assert "around 0, so it may be chance" in sentence(base, other)


def test_one_seed_is_no_interval(tmp_path):
    base, other = groups_of([run(tmp_path, "b"), run(tmp_path, "p", "pre-trained", 9.0)])
    assert sentence(base, other) == (
        "pre-trained detector: AP 9.0, 1.0 less than backbone only (10.0). One seed, no interval: "
        "another seed may say otherwise."
    )


def test_other_settings_are_another_group_and_named_by_their_run(tmp_path):
    runs = [run(tmp_path, "slow"), run(tmp_path, "fast", optim={"lr": 1.0})]
    assert [group.title for group in groups_of(runs)] == ["slow", "fast"]


def test_short_names_tell_paths_apart():
    assert told_apart([Path("x/a/run"), Path("x/b/run")]) == ["a", "b"]
    assert told_apart([Path("a/one"), Path("b/two")]) == ["one", "two"]
    assert told_apart([Path("x/run"), Path("x/run/deeper")]) == ["run", "deeper"]
    assert told_apart([Path("x/run")]) == ["run"]


def test_long_names_go_without_what_they_share():
    ends = [f"{start}/100percent_lr0.05_weight_decay0.0001_seed{n}" for start in "ab" for n in "01"]
    names = told_apart([Path(end) for end in ends])
    assert names == ["a/…seed0", "a/…seed1", "b/…seed0", "b/…seed1"]
    assert told_apart([Path(ends[0])]) == ["100percent_lr0.05_weight_decay0.0001_seed0"]
    unlike = [Path("x" * 50), Path("y" * 50 + "_z")]
    assert told_apart(unlike) == [path.name for path in unlike]


def test_seeds_of_a_low_data_protocol_and_of_older_versions_are_runs_repeated(tmp_path):
    """Each has labels of its own, a fold; and keys that an older version did not write have their
    defaults."""
    runs = [
        run(tmp_path, "a", seed=0, data={"train": {"annotations": "x/1percent_fold0.json"}}),
        run(tmp_path, "b", seed=1, data={"train": {"annotations": "x/1percent_fold1.json"}}),
        run(
            *(tmp_path, "c"),
            **{"seed": 2, "data": {"train": {"annotations": "x/1percent_fold2.json"}, "flip": 0.5}},
        ),
    ]
    assert [len(group.runs) for group in groups_of(runs)] == [3]
    other = run(tmp_path, "d", seed=3, data={"train": {"annotations": "x/5percent_fold3.json"}})
    assert [len(group.runs) for group in groups_of([*runs, other])] == [3, 1]
    assert told_apart([Path("x/run"), Path("x/run")]) == ["run", "run"]
    assert told_apart([]) == []


def test_folds_with_the_same_seed_are_compared_fold_by_fold(tmp_path):
    labels = [{"train": {"annotations": f"x/1percent_fold{n}.json"}} for n in range(5)]
    runs = [run(tmp_path, f"b{n}", ap=10.0 + n, data=labels[n]) for n in range(5)]
    runs += [run(tmp_path, f"p{n}", "pre-trained", 20.0 + n, data=labels[n]) for n in (3, 1, 0, 2)]
    base, other = groups_of(runs)
    assert list(map(str, base.runs)) == [f"0, fold {n}" for n in range(5)]
    assert len(other.runs) == 4
    found = difference(base, other)
    assert (found.base, found.other, found.pairs) == (11.5, 21.5, 4)  # without fold 4
    assert "AP 21.5, 10.0 more than backbone only (11.5). Mean of 4 pairs of runs" in sentence(
        base, other
    )


def test_a_run_that_was_made_twice_is_not_lost(tmp_path):
    (group,) = groups_of([run(tmp_path, "a", ap=1.0), run(tmp_path, "b", ap=2.0)])
    assert list(map(str, group.runs)) == ["0", "0, run 2"]
    (tmp_path / "a" / "results.json").unlink()  # it was killed
    runs = [RunFiles.read(tmp_path / name) for name in "ab"]
    runs += [run(tmp_path, f"p{n}", "pre-trained", ap) for n, ap in enumerate((5.0, 7.0))]
    found = difference(*groups_of(runs))
    assert (found.base, found.other, found.pairs, found.interval) == (2.0, 6.0, 1, None)


def test_starts_without_a_common_seed_are_not_compared(tmp_path):
    base, other = groups_of([run(tmp_path, "b"), run(tmp_path, "p", "pre-trained", seed=1)])
    assert difference(base, other) is None
    assert "share no seed" in sentence(base, other)


@pytest.mark.parametrize("count", [2, 3, 5, 11, 12, 40])
def test_intervals_are_those_of_scipy(count):
    values = [(7 * i) % 5 + 0.1 * i for i in range(count)]
    expected = stats.t.interval(0.95, count - 1, stats.tmean(values), stats.sem(values))
    assert interval(values) == pytest.approx(expected, rel=0.02)
    assert interval(values[:1]) is None


def test_quantiles_are_those_of_scipy():
    for degrees, value in enumerate(T, 1):
        assert value == pytest.approx(stats.t.ppf(0.975, degrees), abs=6e-4)
