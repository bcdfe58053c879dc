"""The ResNet example holds, by its own test, and a ResNet with a classic mistake does not."""

import numpy as np
import pytest
from flax import nnx

import parity

pytest_plugins = ["pytester"]

IMAGES = np.random.RandomState(0).standard_normal((2, 3, 32, 32))


def test_the_example_passes_as_its_user_runs_it(run_example):
    run_example("resnet").assert_outcomes(passed=1)


def same_padding(model: nnx.Module) -> None:
    """Flax's default: with stride 2 it pads after the image only, PyTorch on both sides."""
    model.layers[1].layers[0].conv1.padding = "SAME"


def epsilon(model: nnx.Module) -> None:
    """Keras' and old TensorFlow models' default in place of 1e-5."""
    model.layers[0].layers[1].bn2.epsilon = 1e-3


@pytest.mark.parametrize(("bug", "culprit"), [(same_padding, "layers.1.0.conv1"), (epsilon, "layers.0.1.bn2")])
def test_a_seeded_bug_is_found_in_its_layer(example, bug, culprit):
    module = example("resnet/test_resnet_parity")
    torch_model, jax_model = module.make_pair()
    bug(jax_model)
    report = parity.check(torch_model, jax_model, IMAGES, rules=module.RULES, level="forward")
    assert report.first_divergence == culprit
    assert not report.passed
