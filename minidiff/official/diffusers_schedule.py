"""Schedules in diffusers' words and back: what its scheduler_config.json says of ours.

Theirs are tables of betas, by a name or number by number. A table that no name stands for is written out, with our name
for it beside, in a key that diffusers passes over.
"""

import json

import numpy as np

from minidiff import schedules
from minidiff.errors import unknown_name

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}  # ours -> theirs
SCHEDULERS = {"ddim": "DDIM", "ddpm": "DDPM"}
WRITTEN_FOR = "0.30.0"  # a version of diffusers that knows all we say; it asks which one wrote a file
SCHEDULE_DEFAULTS = {  # what a scheduler config means that leaves one of them out
    "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "trained_betas": None,
    "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
}  # fmt: skip


def scheduler_config(diffusion, kind="ddim"):
    """The scheduler_config.json that means the schedule and prediction of this Diffusion; ValueError if none does."""
    schedule, prediction = diffusion.schedule, diffusion.prediction
    _check_sayable(diffusion, kind)
    config = {
        "_class_name": f"{SCHEDULERS[kind]}Scheduler",
        "_diffusers_version": WRITTEN_FOR,
        "_minidiff": {"schedule": schedule.name, "arguments": json.loads(json.dumps(schedule.arguments))},
        "num_train_timesteps": schedule.steps,
        **_betas(schedule),
        "prediction_type": PREDICTIONS[prediction],
        "clip_sample": diffusion.latents is None,
        "clip_sample_range": 1.0,
        "timestep_spacing": "trailing",  # from pure noise on, as "uniform" is here
    }
    if kind == "ddim":
        return config | {"set_alpha_to_one": True, "steps_offset": 0}
    return config | {"variance_type": "learned_range" if diffusion.learned_range else "fixed_small"}


def _check_sayable(diffusion, kind):
    schedule = diffusion.schedule
    if not schedule.steps:
        raise ValueError(
            f"the schedule {schedule} is continuous, and what fits of diffusers counts steps: train on "
            "linear(1000), cosine(1000), scaled_linear(1000), sigmoid(1000) or zero_terminal_snr of one of them."
        )
    if diffusion.prediction not in PREDICTIONS:
        raise ValueError(f'prediction="{diffusion.prediction}" has no name in diffusers; {", ".join(PREDICTIONS)} do')
    if diffusion.time != "index" and (diffusion.time, schedule.steps) != ("index_rescaled", 1000):
        raise ValueError(f'time="{diffusion.time}": diffusers feeds the number of the step, which is time="index".')
    if diffusion.latents is None and diffusion.value_range != (-1, 1):
        raise ValueError(f"value_range={diffusion.value_range}: pipelines of diffusers take pictures to be in (-1, 1).")
    if diffusion.learned_range and kind != "ddpm":
        raise ValueError(f'scheduler="{kind}" of diffusers reads no learned range; use scheduler="ddpm".')


def _betas(schedule):
    """How a scheduler of diffusers is told these betas: by a name of theirs where it has one, else as a table."""
    ends = {"beta_start": float(schedule.betas[0]), "beta_end": float(schedule.betas[-1])}
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        config = {"num_train_timesteps": schedule.steps, "beta_schedule": name, **ends}
        if _same(_schedule_of(config), schedule.betas):
            return {"beta_schedule": name} | ({} if name == "squaredcos_cap_v2" else ends)
    return {"trained_betas": schedule.betas.tolist()}


def read_scheduler(config):
    """(schedule, prediction) of a scheduler_config.json; ValueError for one that no schedule of ours means."""
    if "beta_schedule" not in config and config.get("_class_name", "DDPMScheduler")[:4] not in SCHEDULERS.values():
        raise ValueError(  # all that have betas write which; a flow or a VE process would pass for "linear"
            f"a {config['_class_name']} has no betas, and only schedules of betas are read."
        )
    config, own = SCHEDULE_DEFAULTS | config, config.get("_minidiff")
    kinds = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    if config["prediction_type"] not in kinds:
        raise unknown_name("prediction_type", config["prediction_type"], kinds)
    table = config["trained_betas"]
    if table is None:
        schedule = _schedule_of(config)
        schedule = schedules.zero_terminal_snr(schedule) if config["rescale_betas_zero_snr"] else schedule
    elif own:
        schedule = schedules.make_schedule(own["schedule"], **own["arguments"])
    else:
        discrete = (make(len(table)) for make in (schedules.linear, schedules.cosine, schedules.sigmoid))
        schedule = next((one for one in discrete if _same(one, table)), None)
    if schedule is None or table is not None and not _same(schedule, table):
        raise ValueError(
            f"trained_betas ({len(table)} numbers from {table[0]:g} to {table[-1]:g}) are those of no schedule of "
            "minidiff. Load the network with minidiff.official.from_official, and tie it to "
            "schedules.from_betas(name, {}, betas) in a Diffusion."
        )
    return schedule, kinds[config["prediction_type"]]


def _schedule_of(config):
    """Our schedule that a named beta_schedule of diffusers means."""
    steps, first, last = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    known = {
        "linear": lambda: schedules.linear(steps, first * steps, last * steps),
        "scaled_linear": lambda: schedules.scaled_linear(steps, first, last),
        "squaredcos_cap_v2": lambda: schedules.cosine(steps),
    }
    if config["beta_schedule"] not in known:
        raise unknown_name("beta_schedule", config["beta_schedule"], known)
    return known[config["beta_schedule"]]()


def _same(schedule, betas):
    return schedule.steps == len(betas) and np.allclose(schedule.betas, betas, rtol=1e-9, atol=1e-12)
