"""The digits, and what importing the package costs."""

import subprocess
import sys

import numpy as np
import pytest

from hpo.training.data import digits


def test_the_digits_are_split_into_parts_with_equal_shares_of_each_class():
    data = digits()

    parts = [data.train, data.validation, data.test]
    assert [len(targets) for _, targets in parts] == [1257, 270, 270]
    for inputs, targets in parts:
        assert inputs.shape == (len(targets), 64)
        assert inputs.dtype == np.float32
        assert targets.dtype == np.int64
        shares = np.bincount(targets, minlength=len(data.class_names)) / len(targets)
        assert shares == pytest.approx(np.full(10, 0.1), abs=0.005)
    assert data.train[0].mean() == pytest.approx(0, abs=1e-5)
    assert data.train[0].std() == pytest.approx(1, abs=1e-5)


def test_the_parts_together_are_the_digits_each_once():
    from sklearn.datasets import load_digits

    data = digits()

    pixels = np.concatenate([part[0] for part in (data.train, data.validation, data.test)])
    grey = np.rint((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 16)
    assert sorted(grey.tolist()) == sorted(load_digits().data.tolist())


def test_the_split_depends_on_its_seed_alone_and_is_read_once():
    assert digits() is digits()
    assert not np.array_equal(digits().validation[1], digits(seed=1).validation[1])


def test_the_digits_cant_be_changed_by_a_trial():
    with pytest.raises(ValueError, match="read-only"):
        digits().train[0][0] = 0


def test_importing_the_package_brings_no_framework():
    modules = ", ".join(
        f"hpo.training.{name}" for name in ("clock", "data", "evaluation", "fitting", "hardware")
    )
    heavy = {"torch", "keras", "tensorflow", "sklearn", "matplotlib", "pyarrow", "psutil", "pynvml"}
    code = f"import sys, {modules}; print({heavy} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
