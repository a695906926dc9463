"""Formulas, trajectories and networks against recorded outputs of the official implementations."""

import goldens
import pytest
import torch

from minidiff import create_model


@pytest.mark.parametrize("family", goldens.MATH_ROWS)
def test_mathematics_equals_the_reference(family):
    rows = list(goldens.MATH_ROWS[family]())
    assert len(rows) >= 8
    assert {what: error for what, error in rows if not error < goldens.MATH} == {}


@pytest.mark.parametrize("dtype", goldens.DTYPES, ids=str)
@pytest.mark.parametrize("name", goldens.NETWORKS)
def test_network_equals_the_official_one(name, dtype):
    error, tolerance = goldens.network_error(name, dtype)
    assert error < tolerance


@pytest.mark.parametrize("name", goldens.PARAMETERS)
def test_published_parameter_count(name):
    with torch.device("meta"):
        network = create_model(name)
    assert sum(p.numel() for p in network.parameters()) == goldens.PARAMETERS[name]


@pytest.mark.parametrize("name", goldens.MILLIONS)
def test_parameter_count_printed_in_millions(name):
    with torch.device("meta"):
        network = create_model(name)
    millions, slack = goldens.MILLIONS[name]
    assert abs(sum(p.numel() for p in network.parameters()) / 1e6 - millions) <= slack
