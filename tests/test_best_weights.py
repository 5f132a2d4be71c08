"""The weights of the highest AP: kept over evaluations, and over a kill."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from aligndet import dist
from aligndet.best_weights import BestWeights
from tests.helpers.small_detectors import model_config


def written(path):
    return torch.load(path, weights_only=True) if path.exists() else None


def test_only_a_higher_ap_replaces_the_file(tmp_path):
    path, now = tmp_path / "weights_best.pt", {"step": 0}

    def content():
        model = {"step": torch.tensor(now["step"])}
        return {"model": model, "stage": "box", "config": asdict(model_config())}

    best = BestWeights(path, content)
    best.offer(None)
    assert written(path) is None
    kept = []
    for ap in (0.0, 3.5, 3.5, 1.0, None, 4.0):
        best.offer(ap)
        kept.append(int(written(path)["model"]["step"]))
        now["step"] += 1
    assert kept == [0, 1, 1, 1, 1, 5]
    BestWeights(path, content).offer(4.0)  # the run is resumed
    assert written(path)["AP"] == 4.0
    assert int(written(path)["model"]["step"]) == 5


def test_other_ranks_neither_read_nor_write(tmp_path, monkeypatch):
    monkeypatch.setattr(dist, "rank", lambda: 1)
    path = tmp_path / "weights_best.pt"
    BestWeights(path, dict).offer(1.0)
    assert written(path) is None
    path.write_bytes(b"")  # rank 0 may be writing or removing it
    BestWeights(path, dict).offer(1.0)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("kind", ["damaged", "without AP"])
def test_what_cannot_be_compared_with_is_named(tmp_path, kind):
    path = tmp_path / "weights_best.pt"
    torch.save({"model": {}}, path)
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"weights_best\.pt: .*; remove it, and the run keeps"):
        BestWeights(path, dict)
