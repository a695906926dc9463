"""The table of samplers in docs/verification.md: every sampler is in it, and reaches the order of its theory."""

import math

import orders
import pytest
import torch

from minidiff.oracles import Gaussian
from minidiff.samplers import SAMPLERS


def test_every_sampler_is_measured():
    assert {case.sampler for case in orders.CASES.values()} == set(SAMPLERS)


@pytest.mark.parametrize("name", orders.CASES)
def test_order_is_that_of_the_theory(name):
    theory = orders.CASES[name].order
    order = orders.measured_order(name)
    assert (order is None and theory is None) or order > theory - orders.SLACK


@pytest.mark.parametrize("name", ["heun", "dpm_3s", "dpmpp_2m", "unipc", "euler_maruyama", "predictor_corrector"])
def test_row_of_the_table(name):
    [(_, errors, _, _, ok)] = orders.rows([name])
    assert ok and len(errors) == len(orders.BUDGETS) and errors[-1] < errors[0] / 4


def test_higher_orders_win_at_the_same_cost():
    assert orders.error("dpmpp_2m", 32) < orders.error("ddim", 32) / 4
    assert orders.error("unipc", 32) < orders.error("dpmpp_2m", 32)


def test_the_solution_is_exact(monkeypatch):
    half = orders.solution(500)
    assert (half - orders.solution()).abs().max() < 1e-6
    gaussian = Gaussian([0.3, -0.2], [[0.3, 0.1], [0.1, 0.2]])
    monkeypatch.setattr(orders, "mixture", lambda: gaussian)
    (alpha_T, sigma_T), (alpha, sigma) = orders.SCHEDULE(1.0), orders.SCHEDULE(orders.T_END)
    values, axes = torch.linalg.eigh(torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64))
    stretch = ((alpha**2 * values + sigma**2) / (alpha_T**2 * values + sigma_T**2)).sqrt()
    away = (orders.starts() - alpha_T * gaussian.means) @ axes  # each axis keeps its distance in standard deviations
    exact = alpha * gaussian.means + (away * stretch) @ axes.T
    assert (orders.solution.__wrapped__(500) - exact).abs().max() < 1e-8


def test_the_distance_of_distributions():
    points = orders.exact_samples(0, 2000)
    assert orders.sliced_wasserstein(points, points.flip(0)) == 0
    moved = orders.sliced_wasserstein(points, points + torch.tensor([0.3, 0.0], dtype=torch.float64))
    assert math.isclose(moved, 0.3 / math.sqrt(2), rel_tol=1e-6)
