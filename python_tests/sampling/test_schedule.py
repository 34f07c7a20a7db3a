import math

import pytest
import torch

from edlm_engine import LogLinearSchedule


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_times_fall_evenly_from_1_to_eps(steps):
    times = LogLinearSchedule(eps=0.01).times(steps)
    assert times.dtype == torch.float64 and times.shape == (steps + 1,)
    assert times[0] == 1 and abs(times[-1] - 0.01) < 1e-15
    assert torch.allclose(times.diff(), torch.tensor(-0.99 / steps, dtype=torch.float64))


def test_mask_prob_and_its_inverse():
    schedule = LogLinearSchedule()
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(schedule.mask_prob(t), t)
    assert torch.equal(schedule.time_of(schedule.mask_prob(t)), t)


def test_sigma_is_finite_at_1_and_matches_mask_prob():
    schedule = LogLinearSchedule(sigma_eps=1e-3)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    want = [0.0, -math.log(1 - 0.999 * 0.5), -math.log(1e-3)]
    assert torch.allclose(schedule.sigma(t), torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("field", ["eps", "sigma_eps"])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, math.nan])
def test_bad_values(field, value):
    with pytest.raises(ValueError, match=rf"{field} must be in \(0, 1\), got"):
        LogLinearSchedule(**{field: value})
