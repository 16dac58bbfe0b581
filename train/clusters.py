"""Who this process is among those that train as one: from flags, Slurm, Open MPI or a TPU slice.

Each kind reads the environment that its launcher sets and gives a `Cluster`, None where it started one process alone.
A TPU VM says it through the metadata server instead. What a launcher says and cannot be is a `UserError`.
"""

import contextlib
import dataclasses
import glob
import http.client
import os
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, get_args

from core.errors import UserError

Kind = Literal["auto", "none", "slurm", "mpi", "tpu"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Environment = Mapping[str, str]
Metadata = Callable[[str], str | None]

# Ports from here on are above Linux's ephemeral range, which ends at 60999; a run takes an even one and the next.
FIRST_PORT, PORT_PAIRS = 61440, 2047
TPU_PORT = 8482  # the TPU runtime's own are 8431, 8471, 8476 to 8479; MegaScale's is 8080
METADATA_SECONDS = 2.0
REMEDY = "give --coordinator=HOST:PORT of process 0"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """One process among several."""

    kind: str  # "flags" or what it was found by
    coordinator: str  # HOST:PORT of process 0; the port after it is used too
    num_processes: int
    process_id: int
    local_devices: tuple[int, ...] | None = None  # of the host's GPUs, where it runs several processes; else all
    hosts: tuple[str, ...] = ()  # of each process, where known before they join

    @property
    def name(self) -> str:
        """This process, as in messages."""
        return f"process {self.process_id} on {socket.gethostname()}"

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """What goes wrong inside says in which process, unless it is process 0, whose output is everybody's."""
        try:
            yield
        except UserError as error:
            if self.process_id == 0:
                raise
            raise UserError(f"{self.name}: {error}") from error


def find(
    kind: Kind,
    environment: Environment = os.environ,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    metadata: Metadata | None = None,
) -> Cluster | None:
    """The cluster that flags or the environment speak of, None for a process alone; flags win.

    `coordinator` without the other two replaces what a launcher says. `metadata` looks an attribute up at a TPU VM's
    metadata server; by default it does so only where TPU chips are.
    """
    if kind == "none":
        return None
    if (processes is None) != (process is None):
        raise UserError("--processes=N and --process=I belong together, with --coordinator=HOST:PORT of process 0")
    if processes is not None and process is not None:
        if coordinator is None:
            raise UserError("--processes and --process need --coordinator=HOST:PORT, of process 0")
        if not 0 <= process < processes:
            raise UserError(f"--process={process} of --processes={processes}: number them from 0 to {processes - 1}")
        found = _checked(Cluster("flags", coordinator, processes, process))
        return found if processes > 1 else None
    readers = {
        "mpi": lambda: from_open_mpi(environment, coordinator),  # before Slurm, on which it may run
        "slurm": lambda: from_slurm(environment, coordinator),
        "tpu": lambda: from_tpu(environment, metadata or _metadata_where_chips_are(environment)),
    }
    for name in readers if kind == "auto" else (kind,):
        if found := readers[name]():
            return _checked(dataclasses.replace(found, coordinator=coordinator or found.coordinator))
    if kind != "auto":
        raise UserError(f"--cluster={kind}: {MISSING[kind]}; --cluster=none trains in this process alone")
    if coordinator is not None:
        raise UserError("--coordinator needs --processes=N and --process=I; no cluster says which process this is")
    return None


MISSING = {
    "slurm": "srun started no step of several tasks here (SLURM_STEP_NUM_TASKS)",
    "mpi": "mpirun of Open MPI started no several processes here (OMPI_COMM_WORLD_SIZE)",
    "tpu": "no TPU slice of several hosts is here (TPU_WORKER_HOSTNAMES, or the metadata server of a TPU VM)",
}


def _checked(cluster: Cluster) -> Cluster:
    host, _, port = cluster.coordinator.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 65535):
        raise UserError(f"the coordinator {cluster.coordinator!r} is not HOST:PORT, with a port from 1 to 65534")
    return cluster


# Slurm


def from_slurm(environment: Environment, coordinator: str | None = None) -> Cluster | None:
    """What `srun` set, where it started several tasks as one step; a batch script itself is no step."""
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", 1)
    if tasks <= 1:
        return None
    process = _number(environment, "SLURM_PROCID")
    if process >= tasks:
        raise UserError(f"SLURM_PROCID={process} is not below SLURM_STEP_NUM_TASKS={tasks}")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes and not coordinator:
        raise UserError(f"SLURM_STEP_NODELIST is not set; {REMEDY}")
    number = _number(environment, "SLURM_JOB_ID") + _number(environment, "SLURM_STEP_ID", 0)
    bind = environment.get("SLURM_GPU_BIND", "per_task" if "SLURM_GPUS_PER_TASK" in environment else "none")
    own = None  # where Slurm shows each task its own GPUs only
    if bind.startswith("none"):
        own = _shared_gpus(environment, _number(environment, "SLURM_LOCALID", 0), _tasks_here(environment))
    return Cluster("slurm", coordinator or _address(first_host(nodes or ""), number), tasks, process, own)


def hints(environment: Environment) -> Iterator[str]:
    """A remark for a batch script whose command lacks `srun`, so that one of its tasks starts and not all."""
    tasks = environment.get("SLURM_NTASKS", "1")
    if "SLURM_JOB_ID" in environment and "SLURM_STEP_NUM_TASKS" not in environment and tasks not in ("", "0", "1"):
        yield f"Slurm holds {tasks} tasks for this job, this process is alone; `srun python launch.py ...` starts all"


NODE_NAME = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9]+[0-9,-]*\])+")


def first_host(nodes: str) -> str:
    """The first name of a Slurm node list: `rack2-gpu07` of `rack2-gpu[07-15,20],login`."""
    match = NODE_NAME.match(nodes)
    if not match or nodes[match.end() :][:1] not in ("", ","):
        raise UserError(
            f"SLURM_STEP_NODELIST={nodes!r} is not a node list; give --coordinator=HOST:PORT of process 0"
        )
    return re.sub(r"\[([0-9]+)[0-9,-]*\]", r"\1", match[0])


def _tasks_here(environment: Environment) -> int:
    """How many tasks of the step run on this node, from lists such as `4(x2),1`."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    node, counts = _number(environment, "SLURM_NODEID", 0), []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part)
        if not match:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE={text!r} is not a list such as 4(x2),1")
        counts.append((int(match[1]), int(match[2] or 1)))
    for count, times in counts:
        if node < times:
            return count
        node -= times
    raise UserError(f"SLURM_NODEID is beyond the nodes of SLURM_STEP_TASKS_PER_NODE={text!r}")


# Open MPI


def from_open_mpi(environment: Environment, coordinator: str | None = None) -> Cluster | None:
    """What `mpirun` of Open MPI 4 and 5 sets.

    Neither says where process 0 is, only where `mpirun` is; both start process 0 there unless the hosts given to it
    leave that machine out, where `--coordinator` helps.
    """
    size = _number(environment, "OMPI_COMM_WORLD_SIZE", 1)
    if size <= 1:
        return None
    process = _number(environment, "OMPI_COMM_WORLD_RANK")
    if process >= size:
        raise UserError(f"OMPI_COMM_WORLD_RANK={process} is not below OMPI_COMM_WORLD_SIZE={size}")
    here = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
    local = _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK", 0)
    address = coordinator or _mpirun_address(environment, alone=here == size)
    return Cluster("mpi", address, size, process, _shared_gpus(environment, local, here))


def _mpirun_address(environment: Environment, alone: bool) -> str:
    """HOST:PORT from the launcher's URI (4) or the name of its job (5); loopback where all run on one host."""
    uri, job = environment.get("OMPI_MCA_orte_hnp_uri", ""), environment.get("PMIX_NAMESPACE", "")
    if uri:  # 606076928.0;tcp://10.96.0.1,10.148.0.1:36995;tcp6://[fd00::2]:56811, the job a multiple of 2^16
        match = re.match(r"(\d{1,12})\.\d+;.*?(?:tcp://([0-9.]+)|tcp6://\[([0-9A-Fa-f:]+))", uri)
        if not match:
            raise UserError(
                f"OMPI_MCA_orte_hnp_uri={uri!r} has no address; give --coordinator=HOST:PORT of process 0"
            )
        host = match[2] or f"[{match[3]}]"
        return _address("127.0.0.1" if alone else host, int(match[1]) >> 16)
    match = re.fullmatch(r"prterun-(.+)-(\d{1,12})@\d+", job)  # prterun-node7-18504@1: the host and its process
    if not match:
        raise UserError(f"PMIX_NAMESPACE={job!r} does not name the host of mpirun; {REMEDY}")
    return _address("127.0.0.1" if alone else match[1], int(match[2]))


# TPU slices


def from_tpu(environment: Environment, metadata: Metadata) -> Cluster | None:
    """A slice of several hosts, or several slices: from GKE's environment, or from a TPU VM's metadata server.

    `MEGASCALE_*` say which of several slices this is; a TPU VM has them in the attribute `tpu-env`.
    """
    names, where = environment.get("TPU_WORKER_HOSTNAMES", ""), "TPU_WORKER_HOSTNAMES"
    said: Environment = environment
    if names:
        hosts = tuple(name.strip() for name in names.split(","))
        worker = _number(environment, "TPU_WORKER_ID", 0 if len(hosts) == 1 else None)
    else:
        number = metadata("agent-worker-number")
        if number is None:
            return None
        said = {**_tpu_env(metadata("tpu-env") or ""), **environment}
        worker, where = _number({"agent-worker-number": number}, "agent-worker-number"), "worker-network-endpoints"
        hosts = tuple(_endpoint(part) for part in (metadata(where) or "").split(","))
    if not all(re.fullmatch(r"[A-Za-z0-9._:-]{1,255}", host) for host in hosts):
        raise UserError(f"{where}={','.join(hosts)!r} is not a list of host names")
    if worker >= len(hosts):
        raise UserError(f"this is TPU worker {worker}, and {where} names {len(hosts)} hosts only")
    slices = _number(said, "MEGASCALE_NUM_SLICES", 1)
    this = _number(said, "MEGASCALE_SLICE_ID", 0)
    if slices > 1 and this >= slices:
        raise UserError(f"MEGASCALE_SLICE_ID={this} is not below MEGASCALE_NUM_SLICES={slices}")
    first = hosts[0]
    if slices > 1:  # the first host of the first slice, by both of Google's launchers
        first = said.get("MEGASCALE_COORDINATOR_ADDRESS", "").partition(":")[0]
        if not first:
            raise UserError("MEGASCALE_COORDINATOR_ADDRESS is not set beside MEGASCALE_NUM_SLICES")
    if slices * len(hosts) <= 1:
        return None
    known = hosts if slices <= 1 else ()
    return Cluster("tpu", f"{first}:{TPU_PORT}", max(slices, 1) * len(hosts), this * len(hosts) + worker, None, known)


def _endpoint(text: str) -> str:
    """The host of an entry of worker-network-endpoints: `10.0.0.2`, or the older `name:id:10.0.0.2`."""
    parts = text.strip().split(":")
    return parts[2] if len(parts) == 3 else parts[0] if len(parts) == 1 else text


def _tpu_env(text: str) -> dict[str, str]:
    """The MegaScale lines of `tpu-env`, such as MEGASCALE_NUM_SLICES: '2'."""
    return dict(re.findall(r"^(MEGASCALE_[A-Z_]+): *'?([^'\n]*)'?$", text, re.MULTILINE))


def _metadata_where_chips_are(environment: Environment) -> Metadata:
    """The metadata server of a TPU VM; silent where there are no chips, or where it is said not to be asked."""
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if not chips or "TPU_SKIP_MDS_QUERY" in environment:
        return lambda _: None
    return lambda name: read_metadata(name, environment)


def read_metadata(name: str, environment: Environment = os.environ) -> str | None:
    """An attribute of this virtual machine; None where it has none, or where no server answers in time."""
    server = environment.get("GCE_METADATA_HOST") or environment.get("GCE_METADATA_IP") or "metadata.google.internal"
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is another machine
    try:
        with direct.open(request, timeout=METADATA_SECONDS) as answer:
            return answer.read(1 << 20).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):  # with the first, urllib's own
        return None


# What all of them need


def _number(environment: Environment, name: str, default: int | None = None) -> int:
    """A variable as a whole number; `default` where it is not set."""
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise UserError(f"{name}={text!r} is not a whole number" if text else f"{name} is not set beside the others")
    return int(text)


def _address(host: str, number: int) -> str:
    """The same port in all processes of a run, and seldom that of another run."""
    return f"{host}:{FIRST_PORT + 2 * (number % PORT_PAIRS)}"


def _shared_gpus(environment: Environment, local: int, processes: int) -> tuple[int, ...] | None:
    """Which of the visible GPUs are this process's, of `processes` on its host; None for all of them.

    One process a host takes all. Several share evenly, unless the launcher shows each its own one only.
    """
    gpus = _visible_gpus(environment)
    if processes <= 1 or gpus <= 1:
        return None
    if gpus % processes or local >= processes:
        raise UserError(
            f"{gpus} GPUs do not share evenly among the {processes} processes of this host; "
            "start one process a GPU, or one a host"
        )
    each = gpus // processes
    return tuple(range(local * each, (local + 1) * each))


def _visible_gpus(environment: Environment) -> int:
    """NVIDIA GPUs that this process may use."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return len(glob.glob("/dev/nvidia[0-9]*"))
    ids = [name.strip() for name in named.split(",")]
    return len(ids[: ids.index("-1")] if "-1" in ids else [name for name in ids if name])
