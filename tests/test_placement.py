"""Where trials find room: held against what Ray itself does with placement groups, and with a real autoscaler."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from ahead import ENVIRONMENT, prepared
from raylets import Raylets

from leebert.errors import DeviceError
from tune.machines.placement import (
    Autoscaler,
    NodeType,
    check_resources,
    crowding,
    nodes_for,
    sharers,
    trials_on,
    trials_per_gpu,
)
from tune.running.failures import of_exception
from tune.store.history import Placement


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        (Placement(), ""),
        (Placement("gpu"), "alone on a GPU"),
        (Placement(accumulate=2), "2 micro-batches per batch"),
        (Placement("node", 4), "alone on a node, 4 micro-batches per batch"),
    ],
)
def test_a_placement_in_words(placement, words):
    assert placement.described() == words


@dataclasses.dataclass(frozen=True)
class Estimate:
    total: int


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "trials"),
    [
        ({"CPU": 4.0}, 1, 0, 4),
        ({"CPU": 4.0}, 1.5, 0, 2),
        ({"CPU": 4.0}, 8, 0, 0),
        ({"CPU": 4.0}, 1, 0.5, 0),
        ({"CPU": 4.0, "GPU": 1.0}, 1, 1, 1),
        ({"CPU": 4.0, "GPU": 1.0}, 3, 0.25, 1),
        ({"CPU": 99.0, "GPU": 8.0}, 1, 3, 2),
    ],
)
def test_a_node_holds_as_many_trials_as_its_scarcest_resource(resources, cpus, gpus, trials):
    assert trials_on(resources, cpus, gpus) == trials


def test_an_autoscaler_has_room_for_what_its_largest_nodes_hold_up_to_its_limit():
    small, large = NodeType("small", {"CPU": 1}, 8), NodeType("large", {"CPU": 4}, 1)
    assert Autoscaler((small, large), 3).room(1, 0) == 4 + 1 + 1
    assert Autoscaler((small, large), 3).room(2, 0) == 2
    assert Autoscaler((small, large), 3).room(1, 1) == 0


@pytest.mark.parametrize("fit", [1, 2, 3, 7, 13, 60])
def test_the_share_of_a_gpu_lets_exactly_those_share_it_that_fit(fit):
    found, share = trials_per_gpu(Estimate(1000), 1000 * fit + 999)
    assert (found, sharers(share)) == (fit, fit)
    assert crowding(Estimate(1000), 1000 * fit + 999, share) == ""


def test_trials_too_large_for_their_share_get_the_right_one_in_the_message():
    estimate = Estimate(10 * 10**9)
    assert "puts 4 trials on a GPU that holds 2" in (said := crowding(estimate, 24 * 10**9, 0.25))
    assert said.endswith("set it to 0.5")
    assert "no trial fits" in crowding(estimate, 8 * 10**9, 1)
    assert crowding(estimate, 8 * 10**9, 0) == ""
    assert crowding(estimate, 12 * 10**9, 2) == ""


@pytest.mark.slow
def test_a_request_that_no_node_meets_is_refused_at_once_with_what_nodes_have(ray_up):
    check_resources(2, 0)
    for cpus, gpus in ((3, 0), (1, 1)):
        with pytest.raises(DeviceError, match=r"which no node has \(nodes: 2 CPUs, 0 GPUs\)"):
            check_resources(cpus, gpus)
    with nodes_for(8, 1, 0) as settle:  # no autoscaler: nothing is asked of anybody
        settle()


AUTOSCALER = {
    "cluster_name": "test", "max_workers": 2, "upscaling_speed": 1.0, "idle_timeout_minutes": 5,
    "provider": {"type": "fake_multinode", "launch_multiple": True, "use_node_id_as_ip": True},
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 4, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default", "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [],
    "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [], "initialization_commands": [],
    "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}  # fmt: skip

#: Asks for nodes, and reserves what trials would take.
DRIVER = """
from ray.util import placement_group, remove_placement_group
from ray.experimental.internal_kv import _internal_kv_get
from leebert.errors import DeviceError
from tune.machines.placement import capacity, check_resources, trials_on, nodes_for
def requested():
    return json.loads(_internal_kv_get("autoscaler_resource_request") or "[]")
told = {"nodes": len(ray.nodes()), "capacity": capacity(1, 0.5)}
check_resources(4, 1)
try:
    check_resources(1, 2)
except DeviceError as error:
    told["refused"] = str(error)
with nodes_for(None, 1, 0.5) as settle:
    settle()
    told["asked"] = requested()
    started = time.time()
    while len(ray.nodes()) < 3 and time.time() < started + 60:
        time.sleep(0.2)
    told["arrived"] = len(ray.nodes())
    settle()
    told["settled"] = requested()
with nodes_for(9, 4, 1):
    told["again"] = requested()
told["after"] = requested()
told["at_once"] = []
for gpus in (1, 0.5, 0.34, 0.3333, 0.0769):
    most = sum(trials_on(node["Resources"], 0.01, gpus) for node in ray.nodes())
    groups = [placement_group([{"CPU": 0.01, "GPU": gpus}]) for _ in range(most)]
    placed = sum(group.wait(10) for group in groups)
    groups.append(placement_group([{"CPU": 0.01, "GPU": gpus}]))
    told["at_once"].append([gpus, most, placed, groups[-1].wait(0.25)])
    for group in groups:
        remove_placement_group(group)
print(json.dumps(told))
"""


@prepared()
def told(folder):
    """What a driver saw on a cluster of a head and Ray's own autoscaler, which starts nodes as processes here."""
    config = folder / "cluster.json"
    raylets = Raylets()
    config.write_text(json.dumps(AUTOSCALER | {"provider": AUTOSCALER["provider"] | {"gcs_address": raylets.address}}))
    try:
        environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        raylets.head("--num-cpus=0", f"--autoscaling-config={config}", **environment)
        connect = f"import json, time, ray; ray.init({raylets.address!r}, log_to_driver=False, logging_level='ERROR')"
        done = subprocess.run(
            [sys.executable, "-c", connect + DRIVER], capture_output=True, text=True, timeout=150, env=ENVIRONMENT,
        )  # fmt: skip
    finally:
        raylets.stop()
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)


@pytest.mark.slow
def test_what_an_autoscaler_can_start_is_no_reason_to_refuse_a_request(told):
    assert told["nodes"] == 1
    assert told["capacity"] == 4
    assert "nodes: 0 CPUs, 0 GPUs; startable: gpu 4 CPUs, 1 GPUs" in told["refused"]


@pytest.mark.slow
def test_nodes_of_all_trials_are_asked_for_at_once_until_they_join(told):
    assert told["asked"] == [{"CPU": 1, "GPU": 0.5}] * 4
    assert told["arrived"] == 3
    assert told["settled"] == []
    assert told["again"] == [{"CPU": 4, "GPU": 1}] * 2, "no more than may be started"
    assert told["after"] == []


@pytest.mark.slow
def test_ray_puts_as_many_trials_on_nodes_as_was_computed(told):
    computed = {gpus: most for gpus, most, _, _ in told["at_once"]}
    assert computed == {1: 2, 0.5: 4, 0.34: 4, 0.3333: 6, 0.0769: 26}
    for gpus, most, placed, one_more in told["at_once"]:
        assert (placed, one_more) == (most, False), gpus


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_every_error_of_gpu_memory_that_ran_out_is_understood(error):
    failure = of_exception(error)
    assert failure is not None
    assert failure.kind == "gpu_memory"
    assert "\n" not in failure.message


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory")]
)
def test_other_errors_keep_their_traceback(error):
    assert of_exception(error) is None
