import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from losses.normalizer import mean_over_ranks


def test_without_a_process_group_it_is_the_count():
    assert mean_over_ranks(7).item() == 7
    assert mean_over_ranks(torch.tensor(7)).item() == 7
    assert mean_over_ranks(2.5).item() == 2.5


def test_minimum():
    assert mean_over_ranks(0).item() == 1
    assert mean_over_ranks(torch.tensor(0.25), minimum=0.5).item() == 0.5
    assert mean_over_ranks(0.0, minimum=1e-6).item() == pytest.approx(1e-6)


def test_no_gradient_flows_and_the_count_is_left_alone():
    count = torch.tensor(3.0, requires_grad=True)
    result = mean_over_ranks(count)
    assert not result.requires_grad
    assert result.dtype == torch.float32
    result += 1
    assert count.item() == 3


def two_ranks(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    count = torch.tensor([6.0, 3.0][rank])
    results = [
        mean_over_ranks(count),
        mean_over_ranks([1, 0][rank]),
        mean_over_ranks(0.0),
        count,
    ]
    torch.save(torch.stack(results), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_give_the_gradient_of_one(tmp_path):
    mp.spawn(two_ranks, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank, own_count in enumerate((6.0, 3.0)):
        # The mean over two ranks of sum / normalizer is the total over max(total count, 1).
        assert results[rank].tolist() == [4.5, 0.5, 0.5, own_count]
