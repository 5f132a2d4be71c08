import torch

from models.indices import true_indices


def test_by_hand():
    masks = [torch.tensor([True, False, True]), torch.tensor([False]), torch.ones(2).bool()]
    assert [indices.tolist() for indices in true_indices(masks)] == [[0, 2], [], [0, 1]]


def test_equals_nonzero_also_on_a_part_of_a_matrix():
    masks = [torch.rand(50, 3) < 0.3, torch.rand(70, 2) < 0.9]
    columns = [mask[:, 1] for mask in masks]
    for indices, column in zip(true_indices(columns), columns, strict=True):
        assert torch.equal(indices, column.nonzero().squeeze(1))


def test_nothing():
    assert true_indices([]) == []
    (indices,) = true_indices([torch.zeros(0, dtype=torch.bool)])
    assert indices.shape == (0,)
    assert indices.dtype == torch.int64


def test_a_gpu_is_waited_for_once(monkeypatch):
    """Whatever the number of masks; `tolist` is what waits."""
    asked, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: asked.append(1) or tolist(x))
    for waits in ("item", "nonzero", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, waits, None)
    true_indices([torch.ones(3).bool()] * 20)
    assert len(asked) == 1
