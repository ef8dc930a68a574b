import pytest

from workbench.seeding import EpochOrder, MixedOrder, derive_seed, draw_uniform


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


def test_epoch_order_without_shuffle_keeps_own_order() -> None:
    order = EpochOrder(3, seed=5, shuffle=False)
    assert [order.batch(step, 2) for step in (1, 2, 3)] == [[0, 1], [2, 0], [1, 2]]


def test_mixed_order_draws_each_step_in_proportion() -> None:
    order = MixedOrder([[0, 1, 2, 3, 4], [5, 6]], [3.0, 1.0], seed=0)
    for step in range(1, 40):
        assert sum(idx < 5 for idx in order.batch(step, 8)) == 6


def test_mixed_order_draws_by_divisors_of_sainte_lague() -> None:
    """Ratios (n + 1/2) / w of weights 2 and 1, by hand: 1/4 1/2 | 3/4 (first of equals) 5/4 3/2 | ..."""
    order = MixedOrder([[0], [1]], [2.0, 1.0], seed=0)
    assert [order.index(idx) for idx in range(6)] == [0, 1, 0, 0, 1, 0]


def test_mixed_order_repeats_no_example_within_an_epoch_of_its_source() -> None:
    groups = [[0, 1, 2, 3, 4], [5, 6]]
    order = MixedOrder(groups, [2.0, 1.0], seed=3)
    drawn = [order.index(idx) for idx in range(90)]
    for group in groups:
        of_source = [idx for idx in drawn if idx in group]
        for start in range(0, len(of_source) - len(group) + 1, len(group)):
            assert sorted(of_source[start : start + len(group)]) == group


def test_mixed_order_batch_needs_no_earlier_step() -> None:
    groups = [list(range(7)), [7, 8, 9]]
    order = MixedOrder(groups, [1.0, 0.3], seed=1)
    steps = [order.batch(step, 4) for step in range(1, 12)]
    assert [MixedOrder(groups, [1.0, 0.3], seed=1).batch(step, 4) for step in (11, 3)] == [steps[10], steps[2]]
    assert steps != [MixedOrder(groups, [1.0, 0.3], seed=2).batch(step, 4) for step in range(1, 12)]


def test_mixed_order_first_pass_has_every_example_once() -> None:
    order = MixedOrder([[0, 1, 2], [3, 4, 5, 6]], [100.0, 1.0], seed=0)
    assert sorted(order.first_pass()) == list(range(7))
    assert order.first_pass()[0] == order.index(0)
