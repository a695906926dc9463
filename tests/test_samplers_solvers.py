"""DPM-Solver and UniPC: references, measured orders, diffusers live, infinite log-SNRs, evaluations, refusals."""

import inspect
import math

import goldens_solvers
import pytest
import torch
from goldens_solvers import fed, sigma_times
from orders import VARIANCE, gaussian_denoiser
from torch.utils._python_dispatch import TorchDispatchMode
from toy import load_math, toy_denoiser, worst

from minidiff import Diffusion, schedules, seeded_noise
from minidiff.prediction import clip
from minidiff.samplers.ancestral import ddim, ddpm
from minidiff.samplers.dpm_solver import SOLVERS, fast_split, multistep, singlestep
from minidiff.samplers.ode import euler, heun
from minidiff.samplers.unipc import unipc
from minidiff.spacings import spacing

ALL = {**SOLVERS, "unipc": unipc}
DATA_FORM = {name: solver for name, solver in ALL.items() if not name.startswith("dpm_")}


@pytest.mark.parametrize("family", goldens_solvers.FLOAT32_ROWS)
def test_trajectories_equal_the_recorded_ones_in_float32(family):
    rows = list(goldens_solvers.FLOAT32_ROWS[family]())
    assert len(rows) == 15
    assert {what: error for what, error in rows if not error < goldens_solvers.FLOAT32} == {}


# --- orders of convergence -------------------------------------------------------------------------------------------

ORDERS = {
    "DDIM as 1M": (multistep, {"order": 1}, 1),
    "2M": (multistep, {"order": 2}, 2),
    "2M taylor": (multistep, {"order": 2, "taylor": True}, 2),
    "2S": (singlestep, {"order": 2}, 2),
    "2S taylor": (singlestep, {"order": 2, "taylor": True}, 2),
    "3M, the official half of a term": (multistep, {"order": 3}, 2),
    "3M taylor": (multistep, {"order": 3, "taylor": True}, 3),
    "3S": (singlestep, {"order": 3}, 3),
    "3S taylor": (singlestep, {"order": 3, "taylor": True}, 3),
    "UniPC-1": (unipc, {"order": 1}, 2),  # the corrector gains one
    "UniPC-2": (unipc, {"order": 2}, 3),
    "UniPC-2 bh1": (unipc, {"order": 2, "variant": "bh1"}, 3),
    "UniPC-3": (unipc, {"order": 3}, 3),
}


def gaussian_error(solver, steps, **options):
    """The error of x for Gaussian data, where x / sqrt(alpha^2 variance + sigma^2) stays what it was.

    Evenly in log-SNR, and far enough down that the lower orders of the last steps do not matter.
    """
    schedule = schedules.linear(None)
    times = spacing(schedule, steps, "log_snr", t_end=1e-5)
    x_T = torch.ones(1, 1, dtype=torch.float64)
    *_, last = solver(gaussian_denoiser(schedule), schedule, x_T, times, **options)
    (alpha, sigma), (alpha_T, sigma_T) = schedule(last.t), schedule(1.0)
    return abs(last.x.item() - math.sqrt((alpha**2 * VARIANCE + sigma**2) / (alpha_T**2 * VARIANCE + sigma_T**2)))


@pytest.mark.parametrize("data", [True, False], ids=["data", "eps"])
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name, data):
    solver, options, order = ORDERS[name]
    coarse, fine = (gaussian_error(solver, steps, data=data, **options) for steps in (160, 320))
    assert math.log2(coarse / fine) > order - 0.2


def sde_variance(steps, order):
    """The variance that the SDE solver gives a Gaussian, exactly: picture k sees the k-th source of noise alone."""
    schedule = schedules.linear(None)
    times = spacing(schedule, steps, "log_snr", t_end=1e-3)
    ones = iter(torch.eye(steps + 1, dtype=torch.float64)[:, :, None])
    x_T = next(ones)
    run = multistep(gaussian_denoiser(schedule), schedule, x_T, times, lambda x: next(ones), order=order, sde=True)
    *_, last = run
    alpha, sigma = schedule(last.t)
    return last.x.square().sum().item(), alpha**2 * VARIANCE + sigma**2


@pytest.mark.parametrize("order", [1, 2])
def test_order_of_the_variance_of_the_sde_solver(order):
    errors = [abs(got - true) for got, true in (sde_variance(steps, order) for steps in (100, 200))]
    assert math.log2(errors[0] / errors[1]) > order - 0.2


def test_first_order_is_ddim_and_with_noise_ddpm():
    schedule = schedules.cosine()
    denoise, times, x_T = gaussian_denoiser(schedule), spacing(schedule, 20), torch.randn(3, 1, 2, 2).double()
    for data in (True, False):
        ours = torch.stack([step.x for step in multistep(denoise, schedule, x_T, times, order=1, data=data)])
        assert worst(ours, torch.stack([step.x for step in ddim(denoise, schedule, x_T, times)])) < 1e-10
    ours = multistep(denoise, schedule, x_T, times, seeded_noise(range(3)), order=1, sde=True)
    theirs = ddpm(denoise, schedule, x_T, times, seeded_noise(range(3)))
    assert max(worst(a.x, b.x) for a, b in zip(ours, theirs, strict=True)) < 1e-10


def test_there_and_back_on_ascending_times():
    schedule = schedules.linear(None)
    times, x = spacing(schedule, 200, "log_snr", t_end=1e-3), torch.randn(3, 1, 2, 2).double()
    for solver in (multistep, singlestep, unipc):
        *_, up = solver(gaussian_denoiser(schedule), schedule, x, times[::-1])
        *_, back = solver(gaussian_denoiser(schedule), schedule, up.x, times)
        assert worst(back.x, x) < 1e-3 * x.abs().max()


# --- diffusers, live -------------------------------------------------------------------------------------------------


def live(name, steps, solver, *, in_sigma=False, scheduler_options=None, noisy=False, **options):
    """The largest difference of the results of a diffusers scheduler and a solver on the toy, in float32."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(num_train_timesteps=1000, **(scheduler_options or {}))
    scheduler.set_timesteps(steps)
    toy = {key: value.float() for key, value in load_math("traj_diffusers")["toy"].items()}
    trained = schedules.linear()
    exact, x_T = toy_denoiser(trained, toy), torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(0))

    source = torch.Generator().manual_seed(1)
    x, x_in_sigma = x_T, x_T * float(scheduler.init_noise_sigma)
    y, keywords = x_in_sigma, {"generator": source} if noisy else {}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(y, t)
        y = scheduler.step(exact(seen, (float(t) + 1) / 1000).eps, t, y, **keywords).prev_sample

    again = torch.Generator().manual_seed(1)
    indices = [float(t) for t in scheduler.timesteps]
    if in_sigma:
        schedule, x = schedules.edm(), x_in_sigma
        times = sigma_times(schedule, scheduler.sigmas[:: 2 if solver is heun else 1].tolist())
        times = times if times[-1] == 0 else [*times, 0.0]
        denoise = fed(toy, indices, schedule)
    else:
        schedule, denoise, times = trained, exact, [*((t + 1) / 1000 for t in indices), 0.0]
        if scheduler.init_noise_sigma != 1:
            x = x_in_sigma / math.hypot(1, float(scheduler.sigmas[0]))
    *_, last = solver(denoise, schedule, x, times, lambda x: torch.randn(x.shape, generator=again), **options)
    assert last.x.dtype == torch.float32 and last.t == 0
    return worst(last.x, y)


DPM, TRAILING = "DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}
LIVE = {
    "2M": (DPM, 20, multistep, {}),
    "2M of 8 steps": (DPM, 8, multistep, {}),
    "2M taylor": (DPM, 20, multistep, {"scheduler_options": {"solver_type": "heun"}, "taylor": True}),
    "3M": (DPM, 20, multistep, {"scheduler_options": {"solver_order": 3}, "order": 3}),
    "2M SDE": (DPM, 20, multistep, {
        "scheduler_options": {"algorithm_type": "sde-dpmsolver++"}, "sde": True, "noisy": True}),
    "2M SDE taylor": (DPM, 20, multistep, {
        "scheduler_options": {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, "sde": True, "noisy": True,
        "taylor": True}),
    "UniPC-2": ("UniPCMultistepScheduler", 20, unipc, {}),
    "UniPC-3": ("UniPCMultistepScheduler", 12, unipc, {"scheduler_options": {"solver_order": 3}, "order": 3}),
    "DDIM": ("DDIMScheduler", 20, ddim, {"scheduler_options": {"clip_sample": False, **TRAILING}}),
    "DDPM": ("DDPMScheduler", 20, ddpm, {"scheduler_options": {"clip_sample": False}, "noisy": True}),
    "Euler": ("EulerDiscreteScheduler", 20, euler, {"scheduler_options": TRAILING, "in_sigma": True}),
    "Euler is DDIM": ("EulerDiscreteScheduler", 20, ddim, {"scheduler_options": TRAILING}),
    "Heun": ("HeunDiscreteScheduler", 20, heun, {"scheduler_options": TRAILING, "in_sigma": True}),
}  # fmt: skip


@pytest.mark.parametrize("what", LIVE)
def test_equals_the_scheduler_of_diffusers(what):
    name, steps, solver, options = LIVE[what]
    assert live(name, steps, solver, **options) < 1e-4


# --- any schedule, any end -------------------------------------------------------------------------------------------

SCHEDULES = [
    schedules.linear(None), schedules.linear(100), schedules.cosine(None), schedules.cosine(100), schedules.flow(),
    schedules.scaled_linear(), schedules.sigmoid(100), schedules.edm(), schedules.variance_exploding(),
    schedules.zero_terminal_snr(schedules.linear(100)),
]  # fmt: skip


@pytest.mark.parametrize("t_end", [0.0, 0.004])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_finite_and_near_the_data_on_every_schedule(schedule, t_end):
    for name, solver in (ALL if schedule(1.0)[0] else DATA_FORM).items():
        for steps in (1, 2, 3, 4, 5, 13):
            start = schedule.start((16, 1, 2, 2), seeded_noise(range(16))).double()
            times = spacing(schedule, steps, t_end=t_end)
            denoise = clip(gaussian_denoiser(schedule), -3, 3)
            seen = list(solver(denoise, schedule, start, times, seeded_noise(range(16))))
            assert seen[-1].t == t_end and seen[-1].x.isfinite().all(), (name, steps)
            assert seen[-1].x.abs().max() < 4 or t_end, (name, steps)
            if t_end == 0:
                assert torch.equal(seen[-1].x, seen[-1].x0)


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s(1.0)[0] == 0], ids=str)
@pytest.mark.parametrize("solver", [SOLVERS["dpm_2m"], SOLVERS["dpm_3s"], lambda *a: unipc(*a, data=False)])
def test_eps_form_refuses_to_start_from_pure_noise(schedule, solver):
    with pytest.raises(ValueError, match=rf"alpha is 0 at t = 1 of {schedule.name}.*dpmpp_2m"):
        next(solver(gaussian_denoiser(schedule), schedule, torch.zeros(1, 1), [1.0, 0.5, 0.0]))


def test_start_from_pure_noise_is_the_limit_of_starts_from_nearly_pure_noise():
    schedule, x = schedules.flow(), torch.randn(4, 1, 2, 2).double()
    for solver in (SOLVERS["dpmpp_2m"], SOLVERS["dpmpp_3m"], SOLVERS["dpmpp_3s"], unipc):
        ends = [
            list(solver(gaussian_denoiser(schedule), schedule, x, [first, *[k / 40 for k in range(39, -1, -1)]]))[-1].x
            for first in (1.0, 1 - 1e-9)
        ]
        assert worst(*ends) < 2e-3


# --- evaluations, operations, options --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 9])
def test_evaluations_are_as_many_as_steps_and_each_at_a_given_time(name, steps):
    schedule, seen = schedules.linear(), []

    def denoise(x, t):
        seen.append(t)
        return gaussian_denoiser(schedule)(x, t)

    for t_end in (0.0, 1e-3):
        seen.clear()
        times = spacing(schedule, steps, t_end=t_end)
        yielded = [step.t for step in ALL[name](denoise, schedule, torch.ones(1, 1), times, seeded_noise([0]))]
        assert seen == times[:-1]
        assert set(yielded) <= set(times[1:]) and yielded[-1] == t_end
        assert name.endswith("s") or yielded == times[1:]


@pytest.mark.parametrize("evaluations, split", [(9, [3, 3, 2, 1]), (10, [3, 3, 3, 1]), (11, [3, 3, 3, 2]), (3, [2, 1]),
                                                (2, [2]), (1, [1])])  # fmt: skip
def test_fast_split(evaluations, split):
    assert fast_split(evaluations, 3) == split
    assert fast_split(evaluations, 2) == [2] * (evaluations // 2) + [1] * (evaluations % 2)


class Operations(TorchDispatchMode):
    """Counts tensor operations; a float64 tensor on the meta device is an error, as is (there) a value read."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += func.overloadpacket.__name__ not in ("detach", "view", "alias")
        assert not (isinstance(out, torch.Tensor) and out.is_meta and out.dtype == torch.float64), func
        return out


class Nothing(torch.nn.Module):
    def forward(self, x, time, y=None):
        return x


@pytest.mark.parametrize("name, most", [
    ("dpmpp_2m", 7), ("dpmpp_3m", 8), ("dpmpp_2s", 7), ("dpmpp_3s", 7), ("dpmpp_2m_sde", 9), ("unipc", 11),
    ("dpm_2m", 9), ("dpm_3s", 9),
])  # fmt: skip
def test_operations_of_a_step_with_the_whole_of_denoise(name, most):
    diffusion = Diffusion(Nothing(), schedules.linear(), "eps", shape=(3, 4, 4))
    x, counts = torch.empty(2, 3, 4, 4, device="meta"), []
    for steps in (24, 54):
        with Operations() as operations:
            list(ALL[name](clip(diffusion.denoise), diffusion.schedule, x, spacing(diffusion.schedule, steps),
                           lambda x: torch.empty_like(x)))  # fmt: skip
        counts.append(operations.count)
    assert (counts[1] - counts[0]) / 30 <= most


@pytest.mark.parametrize("name", SOLVERS)
def test_named_solvers_offer_their_options(name):
    parameters = inspect.signature(SOLVERS[name]).parameters.values()
    assert [p.name for p in parameters if p.kind == p.KEYWORD_ONLY] == ["taylor"]
    assert SOLVERS[name].__name__ == name and SOLVERS[name].__doc__
    schedule = schedules.linear()
    runs = [
        list(SOLVERS[name](gaussian_denoiser(schedule), schedule, torch.ones(1, 1), spacing(schedule, 12),
                           seeded_noise([0]), taylor=taylor))[-1].x
        for taylor in (False, True)
    ]  # fmt: skip
    assert not torch.equal(*runs)


@pytest.mark.parametrize("solver, options, message", [
    (multistep, {"order": 4}, "order of a multistep solver must be one of 1, 2, 3, got 4"),
    (singlestep, {"order": 1}, "order of a single-step solver must be one of 2, 3, got 1"),
    (unipc, {"order": 2.0}, "order of UniPC must be one of 1, 2, 3, got 2.0"),
    (unipc, {"order": 0}, "order of UniPC must be one of 1, 2, 3, got 0"),
    (unipc, {"variant": "bh3"}, "unknown variant of UniPC 'bh3'.*bh1, bh2"),
    (multistep, {"sde": True}, "noise=seeded_noise"),
    (multistep, {"sde": True, "data": False, "noise": torch.zeros_like}, "data=True"),
])  # fmt: skip
def test_bad_options_are_refused(solver, options, message):
    with pytest.raises(ValueError, match=message):
        next(solver(gaussian_denoiser(schedules.flow()), schedules.flow(), torch.ones(1, 1), [0.9, 0.0], **options))
