"""What lies in deploy/: commands that launch.py takes, hosts that make up the topology, flags that gcloud has."""

import math
import os
import re
import shlex
import subprocess

import pytest
import yaml

import launch
from lab import ROOT
from train.clusters import find

DEPLOY = ROOT / "deploy"
# Chips of the largest slice, and of a host of the machine types that slices of several hosts are made of.
ACCELERATORS = {"tpu-v5-lite-podslice": (256, 4, 2), "tpu-v6e-slice": (256, 4, 2), "tpu-v5p-slice": (8960, 4, 3)}


def jobset(name):
    """The one document of a file, with what launch.py and Kubernetes need of its only pod template."""
    document = yaml.safe_load((DEPLOY / "gke" / name).read_text())
    (job,) = document["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return document, job, pod, container


@pytest.mark.parametrize("name", ["slice.yaml", "slices.yaml"])
def test_hosts_and_chips_make_up_the_topology(name):
    document, job, pod, container = jobset(name)
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert document["metadata"]["annotations"][exclusive] == "cloud.google.com/gke-nodepool"
    assert job["replicas"] == {"slice.yaml": 1, "slices.yaml": 2}[name]
    spec, selector = job["template"]["spec"], pod["nodeSelector"]
    largest, a_host, dimensions = ACCELERATORS[selector["cloud.google.com/gke-tpu-accelerator"]]
    topology = [int(size) for size in selector["cloud.google.com/gke-tpu-topology"].split("x")]
    assert len(topology) == dimensions
    resources = container["resources"]
    assert resources["requests"] == resources["limits"] == {"google.com/tpu": a_host}
    assert spec["parallelism"] == spec["completions"] == math.prod(topology) // a_host > 1
    assert math.prod(topology) <= largest
    # All pods start again together when one is lost, and python hears the SIGTERM of a preemption.
    assert (spec["completionMode"], spec["backoffLimit"], pod["restartPolicy"]) == ("Indexed", 0, "Never")
    assert document["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert "command" not in container
    assert 'ENTRYPOINT ["python", "launch.py"]' in (DEPLOY / "gke" / "Dockerfile").read_text()


@pytest.mark.parametrize("name", ["slice.yaml", "slices.yaml"])
def test_the_pods_run_what_launch_takes_and_find_their_place(name):
    document, job, pod, container = jobset(name)
    arguments = launch.parse_arguments(container["args"])
    assert arguments.verb == "train"
    launch.open_experiment(arguments)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert any(arguments.workdir.startswith(f"{path}/") for path in mounts)
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    volume = yaml.safe_load((DEPLOY / "gke" / "volume.yaml").read_text())
    assert {claims[name] for name in mounts.values()} == {volume["metadata"]["name"]}
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]

    name, hosts, slices = document["metadata"]["name"], job["template"]["spec"]["completions"], job["replicas"]
    found = []
    for slice_id in range(slices):
        for worker in range(hosts):
            pods = [f"{name}-{job['name']}-{slice_id}-{host}.{name}" for host in range(hosts)]
            environment = {"TPU_WORKER_ID": str(worker), "TPU_WORKER_HOSTNAMES": ",".join(pods)}
            if slices > 1:
                environment |= {"MEGASCALE_NUM_SLICES": str(slices), "MEGASCALE_SLICE_ID": str(slice_id)}
                environment["MEGASCALE_COORDINATOR_ADDRESS"] = f"{name}-{job['name']}-0-0.{name}"
            found.append(find(arguments.cluster, environment))
    assert [cluster.process_id for cluster in found] == list(range(hosts * slices))
    assert {cluster.num_processes for cluster in found} == {hosts * slices}
    assert {cluster.coordinator for cluster in found} == {f"{name}-slice-0-0.{name}:8482"}


def test_the_stages_before_run_on_the_same_workdir():
    spec = yaml.safe_load((DEPLOY / "gke" / "prepare.yaml").read_text())["spec"]["template"]["spec"]
    verbs = [launch.parse_arguments(one["args"]) for one in (*spec["initContainers"], *spec["containers"])]
    assert [given.verb for given in verbs] == ["curate", "tokenize"]
    trained = launch.parse_arguments(jobset("slice.yaml")[3]["args"])
    assert {(given.config, given.workdir) for given in verbs} == {(trained.config, trained.workdir)}


# Flags of the reference pages, `gcloud compute tpus queued-resources create` and so on.
COMMON = {"--project", "--zone"}
SSH = COMMON | {"--worker", "--command"}
FLAGS = {
    ("queued-resources", "create"): COMMON
    | {"--accelerator-type", "--runtime-version", "--node-id", "--node-count", "--node-prefix", "--spot"},
    ("queued-resources", "describe"): COMMON | {"--format"},
    ("queued-resources", "delete"): COMMON | {"--force", "--quiet"},
    ("queued-resources", "ssh"): SSH | {"--node"},
    ("tpu-vm", "ssh"): SSH,
}


def calls(tmp_path, script, *arguments, **settings):
    """What a script of deploy/tpu-vm asks of gcloud, as lists of words; a stand-in answers."""
    log, stand_in = tmp_path / "calls", tmp_path / "gcloud"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >> {log}\nprintf "\\0" >> {log}\necho ACTIVE\n')
    stand_in.chmod(0o755)
    given = {"PROJECT": "lab", "SHARE": "10.0.0.2:/runs", "REPOSITORY": "https://example.org/quintet.git", **settings}
    environment = {**os.environ, **given, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [str(DEPLOY / "tpu-vm" / script), *arguments]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return [call.split("\0") for call in log.read_text().split("\0\0")[:-1]]


@pytest.mark.parametrize("slices", ["1", "2"])
@pytest.mark.parametrize(
    "script", ["create.sh", "status.sh", "install.sh", "train.sh", "logs.sh", "stop.sh", "delete.sh"]
)
def test_gcloud_is_called_as_its_reference_says(tmp_path, script, slices):
    asked = calls(tmp_path, script, SLICES=slices)
    assert asked
    for words in asked:
        assert words[:2] == ["compute", "tpus"]
        flags = {word.partition("=")[0] for word in words[4:] if word.startswith("--")}
        assert flags <= FLAGS[words[2], words[3]], words
        assert words[4] == "quintet"
        assert {"--project=lab", "--zone=us-west4-a"} <= set(words)
        for inner in [word.removeprefix("--command=") for word in words if word.startswith("--command=")]:
            subprocess.run(["bash", "-n", "-c", inner], check=True)
    if script in ("install.sh", "train.sh", "stop.sh"):
        assert "--worker=all" in asked[-1]
        assert ("--node=all" in asked[-1]) == (slices == "2")
    if script == "create.sh":
        assert ("--node-count=2" in asked[0]) == (slices == "2")


def test_the_hosts_run_what_launch_takes(tmp_path):
    (words,) = calls(tmp_path, "train.sh")
    inner = next(word for word in words if word.startswith("--command="))
    started = shlex.split(inner[inner.index("sudo systemd-run") :])
    arguments = launch.parse_arguments(started[started.index("launch.py") + 1 :])
    assert arguments.verb == "train"
    launch.open_experiment(arguments)
    assert arguments.workdir.startswith("/mnt/quintet/")


def test_slurm_starts_the_processes_that_launch_looks_for():
    text = (DEPLOY / "slurm" / "train.sbatch").read_text()
    line = re.search(r"^srun .*launch\.py (\S+)", text, re.MULTILINE)
    assert line[1] == "--cluster=slurm"
    assert launch.parse_arguments([line[1], "train"]).cluster == "slurm"
    assert "#SBATCH --signal=TERM@" in text
