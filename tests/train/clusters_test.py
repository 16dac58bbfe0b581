"""Who a process is, from what launchers set.

The environments of Slurm and Open MPI are of real runs, names and addresses changed; those of TPU slices have the
form that JAX reads.
"""

import http.server
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import launch
from core.errors import UserError
from train import clusters
from train.clusters import Cluster, find, first_host, from_tpu, hints, read_metadata

# srun of Slurm 22.05, -N3 -n4; task 3 is the only one of the third node.
SRUN = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-3]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2,1(x2)",
}
# The script of the same job, before srun: no step.
SBATCH = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
# mpirun of Open MPI 4.1.8 and 5.0.11.
OMPI_4 = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_MCA_orte_hnp_uri": "606076928.0;tcp://192.0.2.2,198.51.100.2:36995;tcp6://[fd00::2]:56811",
    "PMIX_NAMESPACE": "606076929",
}
OMPI_5 = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_VERSION": "5.0.11",
    "PMIX_NAMESPACE": "prterun-gpu-node-7-18504@1",
    "PMIX_SERVER_URI4": "prterun-gpu-node-7-18504@0.1;tcp4://127.0.0.1:35191",
}
GKE = {"TPU_WORKER_HOSTNAMES": "run-slice-0-0.run,run-slice-0-1.run", "TPU_WORKER_ID": "1"}
GKE_SLICES = {
    "TPU_WORKER_HOSTNAMES": "run-slice-1-0.run,run-slice-1-1.run",
    "TPU_WORKER_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "run-slice-0-0.run:8080",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}
SLURM_PORT = 61440 + 2 * (4242 % 2047)


def gpus(count: int) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}


FOUND = {
    "alone": ({}, None),
    "srun": (SRUN | gpus(0), Cluster("slurm", f"n1:{SLURM_PORT}", 4, 3)),
    "srun, second step": (SRUN | gpus(0) | {"SLURM_STEP_ID": "1"}, Cluster("slurm", f"n1:{SLURM_PORT + 2}", 4, 3)),
    "srun, a process a node": (SRUN | gpus(8), Cluster("slurm", f"n1:{SLURM_PORT}", 4, 3)),
    "srun, a process a GPU": (
        SRUN | gpus(2) | {"SLURM_NODEID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
        Cluster("slurm", f"n1:{SLURM_PORT}", 4, 1, (1,)),
    ),
    "srun, two GPUs a process": (
        SRUN | gpus(4) | {"SLURM_NODEID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
        Cluster("slurm", f"n1:{SLURM_PORT}", 4, 1, (2, 3)),
    ),
    "srun --gpus-per-task": (
        SRUN | gpus(2) | {"SLURM_NODEID": "0", "SLURM_LOCALID": "1", "SLURM_GPUS_PER_TASK": "2"},
        Cluster("slurm", f"n1:{SLURM_PORT}", 4, 3),
    ),
    "srun --gpus-per-task --gpu-bind=none": (
        SRUN | gpus(2) | {"SLURM_NODEID": "0", "SLURM_GPUS_PER_TASK": "1", "SLURM_GPU_BIND": "none"},
        Cluster("slurm", f"n1:{SLURM_PORT}", 4, 3, (0,)),
    ),
    "a batch script": (SBATCH, None),
    "srun --pty": (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
    "Open MPI 4": (OMPI_4 | gpus(0), Cluster("mpi", f"192.0.2.2:{61440 + 2 * (9248 % 2047)}", 4, 3)),
    "Open MPI 4 over IPv6": (
        OMPI_4 | {"OMPI_MCA_orte_hnp_uri": "65536.0;tcp6://[fd00::2,fe80::1]:56811"} | gpus(0),
        Cluster("mpi", "[fd00::2]:61442", 4, 3),
    ),
    "Open MPI 5": (OMPI_5 | gpus(2), Cluster("mpi", f"gpu-node-7:{61440 + 2 * (18504 % 2047)}", 4, 3, (1,))),
    "Open MPI 5, one host": (
        OMPI_5 | gpus(0) | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
        Cluster("mpi", f"127.0.0.1:{61440 + 2 * (18504 % 2047)}", 4, 3),
    ),
    "mpirun within Slurm": (SRUN | OMPI_5 | gpus(0), Cluster("mpi", f"gpu-node-7:{61440 + 2 * 81}", 4, 3)),
    "GKE": (GKE, Cluster("tpu", "run-slice-0-0.run:8482", 2, 1, None, ("run-slice-0-0.run", "run-slice-0-1.run"))),
    "GKE, two slices": (GKE_SLICES, Cluster("tpu", "run-slice-0-0.run:8482", 4, 3)),
    "GKE, one host": ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
    "two slices of one host": (
        GKE_SLICES | {"TPU_WORKER_HOSTNAMES": "run-slice-1-0.run", "TPU_WORKER_ID": "0"},
        Cluster("tpu", "run-slice-0-0.run:8482", 2, 1),
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_who_this_process_is(case):
    environment, expected = FOUND[case]
    assert find("auto", environment, metadata=lambda _: None) == expected


TPU_VM = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.5",
    "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\nWORKER_ID: '1'\nZONE: 'us-west4-a'\n",
}
SLICES = "MEGASCALE_COORDINATOR_ADDRESS: '10.0.1.2:8080'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, None),
        (TPU_VM, ("10.0.0.2:8482", 4, 1)),
        (
            TPU_VM | {"worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3"},
            ("10.0.0.2:8482", 2, 1),
        ),
        (TPU_VM | {"tpu-env": TPU_VM["tpu-env"] + SLICES}, ("10.0.1.2:8482", 8, 5)),
        (TPU_VM | {"agent-worker-number": "0", "worker-network-endpoints": "10.0.0.2"}, None),
    ],
)
def test_a_tpu_vm_is_told_by_its_metadata_server(said, expected):
    found = from_tpu({}, said.get)
    assert (found and (found.coordinator, found.num_processes, found.process_id)) == expected


REFUSED = [
    (SRUN | {"SLURM_PROCID": "4"}, "SLURM_PROCID=4 is not below SLURM_STEP_NUM_TASKS=4"),
    (SRUN | {"SLURM_PROCID": ""}, "SLURM_PROCID is not set"),
    (SRUN | {"SLURM_STEP_NUM_TASKS": "four"}, "SLURM_STEP_NUM_TASKS='four' is not a whole number"),
    (SRUN | {"SLURM_JOB_ID": "-1"}, "SLURM_JOB_ID='-1' is not a whole number"),
    (SRUN | {"SLURM_STEP_NODELIST": "n[1"}, "SLURM_STEP_NODELIST='n[1' is not a node list"),
    (SRUN | {"SLURM_STEP_NODELIST": "", "SLURM_JOB_NODELIST": ""}, "SLURM_STEP_NODELIST is not set"),
    (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2x2"}, "SLURM_STEP_TASKS_PER_NODE='2x2' is not a list"),
    (SRUN | {"SLURM_NODEID": "9"}, "SLURM_NODEID is beyond the nodes"),
    (SRUN | gpus(3) | {"SLURM_NODEID": "0"}, "3 GPUs do not share evenly among the 2 processes of this host"),
    (OMPI_4 | {"OMPI_COMM_WORLD_RANK": "4"}, "OMPI_COMM_WORLD_RANK=4 is not below OMPI_COMM_WORLD_SIZE=4"),
    (OMPI_4 | {"OMPI_MCA_orte_hnp_uri": "nonsense"}, "OMPI_MCA_orte_hnp_uri='nonsense' has no address"),
    (OMPI_5 | {"PMIX_NAMESPACE": "slurm.pmix.4242.0"}, "does not name the host of mpirun; give --coordinator"),
    (GKE | {"TPU_WORKER_ID": "2"}, "this is TPU worker 2, and TPU_WORKER_HOSTNAMES names 2 hosts only"),
    (GKE | {"TPU_WORKER_ID": ""}, "TPU_WORKER_ID is not set"),
    (GKE | {"TPU_WORKER_HOSTNAMES": "a,,b"}, "TPU_WORKER_HOSTNAMES='a,,b' is not a list of host names"),
    (GKE_SLICES | {"MEGASCALE_SLICE_ID": "2"}, "MEGASCALE_SLICE_ID=2 is not below MEGASCALE_NUM_SLICES=2"),
    (GKE_SLICES | {"MEGASCALE_COORDINATOR_ADDRESS": ""}, "MEGASCALE_COORDINATOR_ADDRESS is not set"),
]


@pytest.mark.parametrize(("environment", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_launchers_cannot_mean(environment, message):
    with pytest.raises(UserError) as refused:
        find("auto", gpus(0) | environment, metadata=lambda _: None)
    assert message in str(refused.value)


def test_flags_win_and_cluster_none_is_alone():
    assert find("auto", SRUN, "10.0.0.1:8476", 2, 1) == Cluster("flags", "10.0.0.1:8476", 2, 1)
    assert find("none", SRUN, "10.0.0.1:8476", 2, 1) is None
    assert find("auto", {}, "10.0.0.1:8476", 1, 0) is None
    moved = find("auto", OMPI_5 | gpus(0) | {"PMIX_NAMESPACE": "elsewhere"}, "10.0.0.1:8476")
    assert moved == Cluster("mpi", "10.0.0.1:8476", 4, 3)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("auto", (None, 2, 0), "need --coordinator"),
        ("auto", ("h:1", 2, None), "belong together"),
        ("auto", ("h:1", None, None), "--coordinator needs --processes"),
        ("auto", ("h:1", 2, 2), "number them from 0 to 1"),
        ("auto", ("h:65535", 2, 0), "is not HOST:PORT"),
        ("auto", ("h", 2, 0), "is not HOST:PORT"),
        ("slurm", (None, None, None), "--cluster=slurm: srun started no step"),
        ("mpi", (None, None, None), "--cluster=mpi: mpirun"),
        ("tpu", (None, None, None), "--cluster=tpu: no TPU slice"),
    ],
)
def test_flags_that_say_too_little(kind, given, message):
    with pytest.raises(UserError, match=message):
        find(kind, {}, *given, metadata=lambda _: None)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-0015],host2", "node001"),
        ("node[007,009-015]", "node007"),
        ("rack2-gpu[07-15,20],login", "rack2-gpu07"),
        ("r[1-2]n[3-4].cluster", "r1n3.cluster"),
    ],
)
def test_the_first_host_of_a_slurm_node_list(nodes, first):
    assert first_host(nodes) == first


NAMES = {**SRUN, **OMPI_4, **OMPI_5, **GKE_SLICES, "CUDA_VISIBLE_DEVICES": "", "SLURM_GPU_BIND": "none"}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(sorted(NAMES)),
        st.one_of(
            st.sampled_from([*NAMES.values(), "", "0", "1", "9" * 400, "["]),
            st.text("09an[](),-x:;@/.' é", max_size=20),
        ),
    )
)
def test_any_environment_gives_a_cluster_or_one_line(environment):
    try:
        found = find("auto", environment, metadata=lambda _: None)
    except UserError:
        return
    assert found is None or 0 <= found.process_id < found.num_processes


def test_a_batch_script_without_srun_is_told():
    assert ["srun" in hint for hint in hints(SBATCH)] == [True]
    assert not [*hints(SRUN)]
    assert not [*hints({})]


def test_the_metadata_server_is_asked_as_it_wants():
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = TPU_VM.get(self.path.removeprefix("/computeMetadata/v1/instance/attributes/"))
            well = known is not None and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if well else 404)
            self.end_headers()
            self.wfile.write((known or "no").encode() if well else b"")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"GCE_METADATA_HOST": f"127.0.0.1:{server.server_port}", "http_proxy": "http://127.0.0.1:9"}
        found = from_tpu({}, lambda name: read_metadata(name, environment))
        assert found is not None
        assert (found.coordinator, found.num_processes, found.process_id) == ("10.0.0.2:8482", 4, 1)
        assert read_metadata("no-such-attribute", environment) is None
        server.shutdown()
    assert read_metadata("agent-worker-number", environment) is None  # nobody answers


def test_launch_knows_the_same_kinds():
    for kind in clusters.KINDS:
        assert launch.parse_arguments([f"--cluster={kind}"]).cluster == kind
    with pytest.raises(UserError, match="invalid choice: 'pod'"):
        launch.parse_arguments(["--cluster=pod"])
