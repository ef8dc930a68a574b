import pytest

from workbench.seeding import EpochOrder, derive_seed, draw_uniform


def test_derive_seed_differs_by_every_part() -> None:
    keys = [("a", 1), ("a", 2), ("b", 1), (1, "a"), ("a", 1, 0), ("a", 11), ("a1", 1)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert derive_seed("sample", 0, 1) == derive_seed("sample", 0, 1)
    assert all(0 <= derive_seed(n) < 2**63 for n in range(100))


def test_uniform_draws_are_uniform() -> None:
    draws = [draw_uniform("x", n) for n in range(4000)]
    assert all(0.0 <= draw < 1.0 for draw in draws)
    assert sum(draws) / 4000 == pytest.approx(0.5, abs=0.025)  # five standard deviations
    assert sum(draw < 0.1 for draw in draws) / 4000 == pytest.approx(0.1, abs=0.025)


@pytest.mark.parametrize(("count", "size"), [(10, 3), (3, 10), (1, 4), (7, 7)])
def test_epoch_order_has_every_example_once_per_epoch(count: int, size: int) -> None:
    order = EpochOrder(count, seed=5)
    met = [position for step in range(1, 4 * count + 1) for position in order.batch(step, size)]
    for epoch in range(len(met) // count):
        assert sorted(met[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epoch_order_batch_needs_no_earlier_step() -> None:
    order = EpochOrder(10, seed=1)
    steps = [order.batch(step, 3) for step in range(1, 20)]
    assert [EpochOrder(10, seed=1).batch(step, 3) for step in (19, 7, 1)] == [steps[18], steps[6], steps[0]]
    assert steps != [EpochOrder(10, seed=2).batch(step, 3) for step in range(1, 20)]
    places = order.batch(1, 20)
    assert places[:10] != places[10:]
