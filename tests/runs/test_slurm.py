"""SLURM jobs for submitit."""

import pytest

from diffguard_pl import InputError
from diffguard_pl.runs.slurm import job_parameters, minutes


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 90),
        ("1:30", 2),
        ("4:00:00", 240),
        ("1-2", 1560),
        ("1-2:30", 1590),
        ("1-2:30:01", 1591),
    ],
)
def test_a_time_limit_is_read_as_by_sbatch_and_rounded_up(time, expected):
    assert minutes(time) == expected


def test_a_job_on_cpus_requests_no_gpus():
    parameters = job_parameters(nodes=1, gpus=0, tasks=4, cpus=2, time="10")
    assert parameters["ntasks_per_node"] == 4
    assert "gpus_per_node" not in parameters


def test_a_job_has_time_to_begin_before_it_is_warned():
    job_parameters(nodes=1, gpus=1, tasks=1, cpus=1, time="5")
    with pytest.raises(InputError, match=r"--time 4: .*at least 5"):
        job_parameters(nodes=1, gpus=1, tasks=1, cpus=1, time="4")
