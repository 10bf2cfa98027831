"""Every probe on models and prompts in every precision, and on a device that has no float64."""

import copy

import numpy as np
import pytest
import torch
from conftest import TINY_CFG, TOKEN_CFG, make_model, make_token_model
from torch.overrides import TorchFunctionMode

from loopprobe.dynamics.calibration import calibrate
from loopprobe.dynamics.solve import Status
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import asked as asked_for
from loopprobe.probes.questions import configured
from loopprobe.probes.registry import PROBES
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.support.statistics import at_least_single, double, to_numpy

OPTIONS = {
    "ablate": {"methods": ("zero", "optimal"), "loops": 2, "fit_prompts": 4, "fit_steps": 2},
    "align": {"steps": 4, "fit_prompts": 8},
    "compare": {"baselines": ("least_squares", "ridge", "nearest", "averaging"), "baseline_prompts": 2},
    "converge": {"loops": 4, "states": 0},
    "decode": {"train_prompts": 20, "network_loops": 1, "network_steps": 3},
    "edges": {"loops": 2, "exact": 2, "steps": 1},
    "circuit": {"loops": 2, "steps": 1, "random": 1, "per_decade": 1},
    "exit": {"loops": 4},
    "explore": {"loops": 3, "reset": (0, 1), "heads": ((0, 1),)},
    "fixed_points": {"far": 128, "random_starts": 1, "eigenvalues": 3, "lyapunov_steps": 3, "max_iterations": 5},
    "lens": {"train_prompts": 20},
    "mask": {"n": (0, 3, 6), "loops": 3, "fill": "mean"},
    "patch": {"loops": 2, "sites": ("z", "attn_z")},
    "paths": {"loops": 130},
    "recover": {"loops": 3},
    "failures": {"loops": 130},
    "features": {"loops": 3, "k": 2, "n_features": 8, "steps": 3, "fit_prompts": 4, "controls": 1, "top": 2},
    "steer": {"loops": 3, "in_loops": (1, 2), "fit_prompts": 8, "controls": 1},
    "weights": {"draws": 100},
}
SLOW = {"align", "decode", "failures", "fixed_points", "paths"}
RUN = [  # all but those that read a file of metrics, and tables
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in sorted(set(PROBES) - {"curves", "folds"})
]
HALF = (torch.float16, torch.bfloat16)


def tiny(dtype, name=""):
    if name and PROBES[name].of_tokens:
        return tokens(dtype)
    return Checkpoint(TINY_CFG, make_model(torch.float32).to(dtype), name="runs/tiny")


def tokens(dtype):
    return Checkpoint(TOKEN_CFG, make_token_model().to(dtype), name="runs/tiny-add")


def asked(name, checkpoint, dtype=torch.float32, **options):
    probe, config = configured(name, OPTIONS.get(name, {}) | options)
    return probe.run(checkpoint, checkpoint.held_out(3).to(dtype), config)


@pytest.mark.parametrize("name", RUN)
def test_an_answer_is_found_again_by_what_was_asked(name):
    """Reports and runs reuse an answer whose record is what they ask, options that nobody set included."""
    checkpoint = tiny(torch.float32, name)
    config, prompts = configured(name, OPTIONS.get(name, {}))[1], checkpoint.held_out(3)
    given = asked_for(name, checkpoint, prompts, config)
    assert {key: value for key, value in asked(name, checkpoint).attrs.items() if key in given} == given


def all_wide(data):
    return all(values.dtype.kind != "f" or values.dtype.itemsize >= 4 for values in data.variables.values())


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
@pytest.mark.parametrize("name", RUN)
def test_probes_run_in_every_precision(name, dtype):
    checkpoint = tiny(dtype, name)
    if name in ("failures", "paths") and dtype in HALF:
        with pytest.raises(LoopprobeError, match="limits of states cannot be told apart"):
            asked(name, checkpoint)
        return
    for of_prompts in {torch.float32, dtype}:
        data = asked(name, checkpoint, of_prompts)
        assert all_wide(data)
    near = asked(name, tiny(torch.float32, name))
    assert set(near.variables) == set(data.variables)
    for variable in {"mean", "error", "prediction", "clean"} & set(near.data_vars):
        np.testing.assert_allclose(data[variable].values, near[variable].values, atol=0.3, rtol=0.3)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_limits_are_refused_in_half_precision(dtype):
    with pytest.raises(LoopprobeError, match="rounding"):
        calibrate(dtype)
    with pytest.raises(LoopprobeError, match="rounding"):
        asked("converge", tiny(dtype), states=1, far=128)


# A device without float64, such as Apple's MPS, simulated: its tensors are of a class of their own, and say no.

DEVICE = torch.device("mps")
UNCHANGED = {torch.Tensor.__repr__, torch.Tensor.__format__}


class OnDevice(torch.Tensor):
    """A tensor on the device."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return run_on_device(func, args, kwargs or {})


def flat(values):
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from flat(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from flat(value)


def of_result(values, change):
    if isinstance(values, torch.Tensor):
        return change(values)
    if isinstance(values, (list, tuple)):
        changed = [of_result(value, change) for value in values]
        return type(values)(*changed) if hasattr(values, "_fields") else type(values)(changed)
    return values


def there(tensor):
    if tensor.dtype in (torch.float64, torch.complex128):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    return tensor if isinstance(tensor, OnDevice) else tensor.as_subclass(OnDevice)


def here(tensor):
    return tensor.as_subclass(torch.Tensor) if isinstance(tensor, OnDevice) else tensor


def target_of(func, args, kwargs):
    """Where .to(…), .cpu() or a factory puts its result; None: nowhere in particular."""
    if func is torch.Tensor.cpu:
        return torch.device("cpu")
    named = kwargs.get("device")
    for value in (named, *(args[1:] if func is torch.Tensor.to else ())):
        if isinstance(value, torch.Tensor):
            return DEVICE if isinstance(value, OnDevice) else torch.device("cpu")
        if isinstance(value, (str, torch.device)):
            return torch.device(value)
    return None


def run_on_device(func, args, kwargs):
    tensors = list(flat((args, kwargs)))
    on_device = [isinstance(tensor, OnDevice) for tensor in tensors]
    target = target_of(func, args, kwargs)
    if func == torch.Tensor.device.__get__ and on_device[0]:
        return DEVICE
    if func in (torch.Tensor.numpy, torch.Tensor.__array__) and any(on_device):
        raise TypeError("can't convert mps device type tensor to numpy: use Tensor.cpu() first")
    moves = func in (torch.Tensor.to, torch.Tensor.cpu)
    wrapped = any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)
    plain = [t for t, on in zip(tensors, on_device, strict=True) if not on and t.dim() and t.dtype.is_floating_point]
    assignment = func in (torch.Tensor.__setitem__, torch._has_compatible_shallow_copy_type)
    if any(on_device) and plain and not (moves or wrapped or assignment):
        raise RuntimeError("Expected all tensors to be on the same device, mps:0 and cpu")
    stays = any(on_device) and not (moves and target is not None and target.type == "cpu")
    goes = target is not None and target.type == "mps"
    if stays and moves and torch.float64 in (*args, *kwargs.values()):
        there(torch.zeros((), dtype=torch.float64))
    if moves and any(on_device) and target is not None and torch.float64 in (*args, *kwargs.values()):
        raise TypeError("the device converts before it copies: move to the CPU first")
    plainly = {key: torch.device("cpu") if key == "device" and goes else value for key, value in kwargs.items()}
    if func is torch.Tensor.to:
        args = tuple(torch.device("cpu") if isinstance(a, (str, torch.device)) else a for a in args)
    if func is torch.Tensor.__deepcopy__ and on_device[0]:
        return torch.nn.Parameter(there(here(args[0].detach()).clone()))
    leaf = goes and plainly.pop("requires_grad", False)
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*args, **plainly)
    if leaf:
        return there(result).requires_grad_()
    if func in UNCHANGED or (func.__name__ in ("__get__", "__set__") and not isinstance(result, torch.Tensor)):
        return result
    if assignment or func.__name__.startswith("requires_grad"):
        return result
    return of_result(result, there if stays or goes else here)


class Device(TorchFunctionMode):
    """Sends factories with ``device=`` to the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return run_on_device(func, args, kwargs or {})


def on_device(checkpoint):
    model = copy.deepcopy(checkpoint.model)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            module._parameters[name] = torch.nn.Parameter(parameter.detach().as_subclass(OnDevice))
    return Checkpoint(checkpoint.config, model, name=checkpoint.name)


@pytest.fixture
def device():
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Device():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def test_the_simulated_device_refuses_float64_and_mixtures(device):
    x = torch.ones(3).to(DEVICE)
    assert x.device == DEVICE
    assert (x + 1).device == DEVICE
    for refused in (
        lambda: x.double(),
        lambda: x.to(torch.float64),
        lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE),
        lambda: x.numpy(),
        lambda: x.to("cpu", torch.float64),
    ):
        with pytest.raises(TypeError):
            refused()
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    assert x.cpu().double().dtype == torch.float64
    assert double(x).dtype == torch.float64
    assert double(x).device.type == "cpu"
    assert to_numpy(x).tolist() == [1, 1, 1]
    assert at_least_single(x).device == DEVICE


@pytest.mark.parametrize("name", RUN)
def test_probes_run_on_a_device_without_float64(name, device):
    checkpoint = tiny(torch.float32, name)
    data = asked(name, on_device(checkpoint))
    expected = asked(name, checkpoint)
    for variable, values in expected.data_vars.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(data[variable], values, rtol=1e-3, atol=1e-4, err_msg=str(variable))
    if name == "fixed_points":
        assert set(np.unique(data.status)) <= {status.name for status in Status}
