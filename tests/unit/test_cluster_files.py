"""cluster.yaml and rayjob.yaml: Ray's own schema and scheduler accept them, and they keep the project's rules.

Neither a cloud nor Kubernetes is here: that AWS or KubeRay take them is not shown.
"""

import ast
import copy
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

ROOT = Path(__file__).parents[2]
TEXT = {name: (ROOT / name).read_text() for name in ("cluster.yaml", "rayjob.yaml")}
CLUSTER = yaml.safe_load(TEXT["cluster.yaml"])
JOB = yaml.safe_load(TEXT["rayjob.yaml"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MINIMUM = next(re.search(r">=([\d.]+)", line)[1] for line in PROJECT["dependencies"] if line.startswith("ray["))
RAY = ".".join([*MINIMUM.split("."), "0", "0"][:3])
TYPES = CLUSTER["available_node_types"]
WORKERS = {name: kind for name, kind in TYPES.items() if name != CLUSTER["head_node_type"]}
SETUP = CLUSTER["setup_commands"] + CLUSTER["head_setup_commands"] + CLUSTER["worker_setup_commands"]
STARTS = CLUSTER["head_start_ray_commands"] + CLUSTER["worker_start_ray_commands"]


def has_gpu(kind):
    return kind["resources"].get("GPU", 0) > 0 or re.match(r"[gp]\d", kind["node_config"]["InstanceType"]) is not None


def values(tree):
    """Every scalar below a node, and every key."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from values(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from values(value)
    else:
        yield tree


# ---------------------------------------------------------------------------------------------------- cluster.yaml


def test_rays_own_schema_accepts_the_cluster():
    validate_config(prepare_config(copy.deepcopy(CLUSTER)))
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        validate_config(prepare_config({**copy.deepcopy(CLUSTER), "setup_comands": []}))


def test_the_head_has_no_gpu_and_runs_no_trial():
    head = TYPES[CLUSTER["head_node_type"]]
    assert not has_gpu(head)
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0


def test_gpu_workers_scale_from_zero_and_have_limits():
    assert len(WORKERS) == 2
    assert 0 < CLUSTER["max_workers"] <= 10
    assert 0 < CLUSTER["idle_timeout_minutes"] <= 30
    for kind in WORKERS.values():
        assert has_gpu(kind)
        assert kind["min_workers"] == 0
        assert 0 < kind["max_workers"] <= CLUSTER["max_workers"]


def launches(gpus, **more):
    """Node types that Ray's autoscaler starts when gpus.py asks for so many, on a cluster without workers."""
    config = AutoscalingConfig(copy.deepcopy(CLUSTER), skip_content_hash=True)
    demand = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make({"GPU": 1})] * gpus)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_worker_nodes(),  # the head is not among the instances here
        cluster_resource_constraints=[ClusterResourceConstraint(resource_requests=demand)],
        **more,
    )
    return {launch.instance_type: launch.count for launch in ResourceDemandScheduler().schedule(request).to_launch}


def test_ray_starts_spot_first_and_the_last_one_on_demand():
    assert launches(0) == {}
    assert launches(2) == {"gpu_spot": 2}
    assert launches(4) == {"gpu_spot": 3, "gpu_on_demand": 1}
    assert launches(CLUSTER["max_workers"] + 1) == {}  # all or nothing
    assert launches(2, recoverable_resource_availabilities={"gpu_spot": 0.0}) == {"gpu_on_demand": 2}
    spot, on_demand = WORKERS["gpu_spot"]["node_config"], WORKERS["gpu_on_demand"]["node_config"]
    assert spot == {**on_demand, "InstanceMarketOptions": {"MarketType": "spot"}}


def test_a_refused_launch_does_not_count_as_a_time_out():
    """Why spot is asked for again and again when it is sold out, as the comment in cluster.yaml says."""
    monitor = CloudResourceMonitor()
    for status, remembered in ((Instance.ALLOCATION_FAILED, False), (Instance.ALLOCATION_TIMEOUT, True)):
        monitor.notify([InstanceUpdateEvent(instance_type="gpu_spot", new_instance_status=status)])
        assert ("gpu_spot" in monitor.get_recoverable_resource_availabilities()) == remembered


def test_nothing_is_open_to_the_world():
    assert "security_group" not in CLUSTER["provider"]  # Ray would open port 22 to everybody
    for kind in TYPES.values():
        groups = kind["node_config"]["SecurityGroupIds"]
        assert groups
        assert all(re.fullmatch(r"sg-[0-9a-f]{17}", group) for group in groups)
    for value in map(str, [*values(CLUSTER), *values(JOB)]):
        assert not re.search(r"0\.0\.0\.0|::/0|CidrIp", value), value


def test_machines_get_their_rights_from_profiles():
    for kind in TYPES.values():
        assert kind["node_config"]["IamInstanceProfile"]["Name"]
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    head = TYPES[CLUSTER["head_node_type"]]["node_config"]["IamInstanceProfile"]
    assert all(kind["node_config"]["IamInstanceProfile"] != head for kind in WORKERS.values())
    for value in map(str, [*values(CLUSTER), *values(JOB)]):
        assert not re.search(r"AKIA|aws_secret|AWS_SECRET", value), value


def test_every_node_has_the_token_and_demands_it():
    starts = [command for command in STARTS if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start " in command for command in starts)
    assert CLUSTER["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in SETUP)
    assert any("RAY_AUTH_MODE=token" in command for command in SETUP)  # for the shells that people open


def test_pages_without_passwords_keep_to_the_loopback():
    head = " ".join(CLUSTER["head_start_ray_commands"])
    assert re.findall(r"--(?:dashboard-)?host[ =](\S+)", head) == ["127.0.0.1", "127.0.0.1"]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert re.search(r"mlflow server .*--artifacts-destination \$STORAGE/", head)
    assert any("export STORAGE=s3://" in command for command in SETUP)
    starts = [command for command in STARTS if "ray start" in command]
    assert all("ulimit -n" in command and "--object-store-memory=" in command for command in starts)


def test_every_ray_that_is_named_is_the_smallest_allowed_release():
    for name, text in TEXT.items():
        named = re.findall(r"ray(?:\[[\w,]+\])?==([\w.]+)", text) + re.findall(r"rayproject/ray:([\w.]+)", text)
        assert named, name
        assert set(named) == {RAY}, name
    assert JOB["spec"]["rayClusterSpec"]["rayVersion"] == RAY
    installs = [command for command in SETUP if re.search(r"pip install|uv pip", command)]
    assert len(installs) == 1
    assert f"'ray[default,tune,train]=={RAY}'" in installs[0]
    assert "-e ~/bisam-ray" in installs[0]
    assert CLUSTER["file_mounts"]["~/bisam-ray"] == "."
    assert not re.search(r"nightly|\.whl|dev0|latest", " ".join(SETUP))


def test_jobs_are_submitted_as_the_readme_does_it():
    comments = TEXT["cluster.yaml"].replace("\\\n#", "").splitlines()
    (line,) = [line for line in comments if "ray job submit" in line]
    words = shlex.split(line.lstrip("# "))
    assert "$" not in " ".join(words[words.index("--") :])  # Ray quotes them: the head's shell would not fill them in
    assert words[words.index("--address") + 1] == "http://localhost:8265"
    assert words[words.index("--working-dir") + 1] == "."
    assert words[words.index("--runtime-env-json") + 1] == "$(bisam-ray runtime-env)"
    assert words[words.index("--") :][:4] == ["--", "python", "-m", "bisam_ray"]


def test_images_are_pinned():
    images = {kind["node_config"]["ImageId"] for kind in TYPES.values()}
    assert len(images) == 1
    assert re.fullmatch(r"ami-[0-9a-f]{17}", images.pop())  # else Ray takes an image of 2022


@pytest.mark.parametrize("command", SETUP + STARTS)
def test_a_command_is_one_for_the_shell(command):
    (line,) = shlex.split(_with_interactive(command)[-1])  # what Ray gives to the node's shell
    shell = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
    assert (shell.returncode, shell.stderr) == (0, "")


def test_setup_leaves_the_environment_that_the_other_commands_use(tmp_path):
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    writing = [command for command in SETUP if "cluster.env" in command or "gpus.py" in command]
    for command in writing + writing:  # `ray up` repeats them
        subprocess.run(["bash", "-c", f"({command})"], env=home, check=True)
    shown = subprocess.run(["bash", "-c", ". ~/.bashrc; env"], env=home, check=True, capture_output=True, text=True)
    variables = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    assert variables["PATH"].split(":")[0] == f"{tmp_path}/venv/bin"
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["STORAGE"].startswith("s3://")
    assert variables["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert variables["RAY_ADDRESS"] == "auto"
    assert not any("RAY_ADDRESS" in command for command in CLUSTER["setup_commands"])  # it would win on the workers
    assert (tmp_path / ".bashrc").read_text().count("cluster.env") == 1
    ast.parse((tmp_path / "gpus.py").read_text())


# ----------------------------------------------------------------------------------------------------- rayjob.yaml

TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
AMOUNTS = {"type": "object", "additionalProperties": {"type": "string"}, "required": ["cpu", "memory"]}


def block(required, **properties):
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


RESOURCES = block(["requests", "limits"], requests=AMOUNTS, limits=AMOUNTS)
CONTAINER = block(
    ["name", "image", "resources"], name={"type": "string"}, image={"type": "string"}, resources=RESOURCES
)
POD = block(
    ["spec"],
    spec=block(
        ["serviceAccountName", "containers"],
        serviceAccountName={"type": "string"},
        tolerations={"type": "array", "items": TEXTS},
        containers={"type": "array", "minItems": 1, "items": CONTAINER},
    ),
)
COUNT = {"type": "integer", "minimum": 0}
# The parts in use, from KubeRay's API reference of ray.io/v1 and rayjob_types.go, raycluster_types.go.
SCHEMA = block(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=block(["name"], name={"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"}),
    spec=block(
        ["entrypoint", "runtimeEnvYAML", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"],
        entrypoint={"type": "string"},
        runtimeEnvYAML={"type": "string"},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        backoffLimit=COUNT,
        rayClusterSpec=block(
            ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
            rayVersion={"type": "string"},
            authOptions=block(["mode"], mode={"enum": ["disabled", "token"]}),
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=block(
                [],
                version={"enum": ["v1", "v2"]},
                idleTimeoutSeconds=COUNT,
                upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
                resources=RESOURCES,
            ),
            headGroupSpec=block(
                ["rayStartParams", "template"],
                serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
                rayStartParams=TEXTS,
                template=POD,
            ),
            workerGroupSpecs={
                "type": "array",
                "items": block(
                    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                    groupName={"type": "string"},
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=TEXTS,
                    template=POD,
                ),
            },
        ),
    ),
)


def pods():
    spec = JOB["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    (worker,) = group["template"]["spec"]["containers"]
    return spec, group, head, worker


def test_the_job_has_the_form_of_kuberays_reference():
    jsonschema.validate(JOB, SCHEMA)
    broken = copy.deepcopy(JOB)
    broken["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # KubeRay wants text
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_rays_autoscaler_reads_the_job_as_it_is_meant():
    read = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "cluster", "namespace": "default"}, "spec": JOB["spec"]["rayClusterSpec"]}
    )
    head, gpu = read["available_node_types"]["headgroup"], read["available_node_types"]["gpu"]
    assert (head["resources"]["CPU"], head["resources"].get("GPU", 0)) == (0, 0)
    assert (gpu["resources"]["CPU"], gpu["resources"]["GPU"]) == (3, 1)
    assert (gpu["min_workers"], gpu["max_workers"], read["max_workers"]) == (0, 4, 4)
    assert read["idle_timeout_minutes"] == 15


def test_the_job_is_guarded_limited_and_cleaned_up():
    spec, group, head, worker = pods()
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not re.search(r"LoadBalancer|NodePort|enableIngress", " ".join(map(str, values(JOB))))
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True
    assert JOB["spec"]["ttlSecondsAfterFinished"] > 0
    assert JOB["spec"]["activeDeadlineSeconds"] <= 7 * 86400
    assert JOB["spec"]["backoffLimit"] == 0
    assert group["minReplicas"] == 0 < group["replicas"] <= group["maxReplicas"]
    for container in (head, worker):
        assert re.fullmatch(rf"rayproject/ray:{re.escape(RAY)}-py311(-gpu)?", container["image"])
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_job_searches_with_what_it_installs():
    words = JOB["spec"]["entrypoint"].split()
    assert words[:2] == ["bisam-ray", "search"]
    assert (ROOT / "search_spaces" / f"{words[2]}.yaml").exists()
    assert words[words.index("--storage") + 1].startswith("s3://")
    assert not set("'\"$;&|") & set(JOB["spec"]["entrypoint"])
    environment = yaml.safe_load(JOB["spec"]["runtimeEnvYAML"])
    assert set(environment) == {"pip", "env_vars"}
    assert all(isinstance(value, str) for value in environment["env_vars"].values())
    (own,) = [line for line in environment["pip"] if line.startswith("bisam-ray")]
    assert own.endswith(f"@v{PROJECT['version']}")
