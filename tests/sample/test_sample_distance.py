"""The distance to real clips: near nothing between real sets, and larger the worse a set is."""

import pytest
import torch

from kinema.errors import RequestError
from kinema.sample.distance import FEATURES, distance_to_real, features, frechet_distance
from kinema.sample.source import World

COUNT = FEATURES + 96


def clips(first):
    return torch.cat([World(0, 64).video(range(i, i + 8), 9) for i in range(first, first + COUNT, 8)])[:COUNT]


@pytest.fixture(scope="module")
def real():
    return clips(0), clips(1000)


def distance(video, real):
    return distance_to_real(features(video), features(real[0]))


def test_it_is_nothing_for_equal_sets(real):
    same = features(real[0])
    assert abs(frechet_distance(same, same)) < 1e-6


def test_it_is_the_known_formula():
    """Of two Gaussians with diagonal covariances it is |μ₁ − μ₂|² + Σ(σ₁ − σ₂)²."""
    base = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T))).T
    one = base * torch.tensor([1.0, 2.0, 3.0])
    other = base * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([0.0, 3.0, 0.0])
    assert frechet_distance(one, other) == pytest.approx(9 + 1 + 0 + 4, rel=1e-6)


def test_what_is_wrong_with_a_set_shows(real):
    floor = distance(real[1], real)
    noise = torch.randn(real[1].shape, generator=torch.Generator().manual_seed(1))
    noisy = [distance((real[1] + level * noise).clamp(-1, 1), real) for level in (0.05, 0.2)]
    frozen = distance(real[1][:, :, :1].expand_as(real[1]), real)
    recoloured = distance(real[1].roll(1, 1), real)
    blurred = distance(torch.nn.functional.avg_pool3d(real[1], (1, 3, 3), 1, (0, 1, 1)), real)
    assert 2 * floor < noisy[0] < noisy[1]
    assert min(frozen, recoloured, blurred) > 2 * floor


def test_features_are_fixed_and_bad_input_is_refused(real):
    assert torch.equal(features(real[0][:2]), features(real[0][:2]))
    assert features(real[0][:2]).shape == (2, FEATURES)
    with pytest.raises(RequestError, match="sizes of 8 or more"):
        features(real[0][:, :, :4])
    with pytest.raises(RequestError, match="more than the"):
        frechet_distance(features(real[0][:9]), features(real[0]))
