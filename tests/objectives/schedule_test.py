import jax
import pytest

from objectives import schedule

DEEPSEEK = ((0.0, 0.3), (0.676, 0.3), (0.676, 0.1))
THIRDS = ((0.0, 0.5), (1 / 3, 0.5), (2 / 3, 0.0))


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0.3, {0.0: 0.3, 0.5: 0.3, 1.0: 0.3}),
        (DEEPSEEK, {0.0: 0.3, 0.67: 0.3, 0.68: 0.1, 1.0: 0.1}),
        (THIRDS, {0.0: 0.5, 0.2: 0.5, 0.5: 0.25, 0.6: 0.1, 0.7: 0.0, 1.0: 0.0}),
        (((0.25, 1.0), (0.75, 2.0)), {0.0: 1.0, 0.25: 1.0, 0.5: 1.5, 0.9: 2.0}),
    ],
)
def test_a_weight_over_a_run(weight, expected):
    traced = jax.jit(lambda progress: schedule.at(weight, progress))
    for progress, value in expected.items():
        assert float(traced(progress)) == pytest.approx(value, abs=1e-6)


def test_at_a_jump_the_weight_is_the_one_after_it():
    assert float(schedule.at(((0.0, 1.0), (0.5, 1.0), (0.5, 0.0)), 0.5)) == 0.0
