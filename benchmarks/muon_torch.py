"""PyTorch's side of muon_gpu.py: published Muon updates of a GPT's matrices, as often as a line says.

The updates are those of checkouts: `SingleDeviceMuon` of KellerJordan/Muon's muon.py, and `polar_express` of
modded-nanogpt's train_gpt.py, which is taken out of the script by its name, with the kernels of triton_kernels.py
beside it. Imports nothing of Quintet.
"""

import ast
import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

from turns import say

try:
    import torch
except ImportError:
    say(failed=f"no torch in {sys.executable}")
    sys.exit()

KERNELS = ("XXT", "XTX", "ba_plus_cAA")  # that polar_express calls
WARM_UP = 3  # updates; the first compiles


def shapes(given: dict, stacked: bool) -> list[tuple[int, ...]]:
    """Outputs and inputs of query, key, value, output, up and down: each alone, or equal ones as a stack."""
    layers, D = given["layers"], given["width"]
    if stacked:
        return [(4 * layers, D, D), (layers, 4 * D, D), (layers, D, 4 * D)]
    return [(D, D), (D, D), (D, D), (D, D), (4 * D, D), (D, 4 * D)] * layers


def parameters(given: dict, stacked: bool) -> list[torch.nn.Parameter]:
    """Zeros with random gradients, in float32."""
    made = []
    for shape in shapes(given, stacked):
        made.append(torch.nn.Parameter(torch.zeros(shape, device=given["device"])))
        made[-1].grad = torch.randn(shape, device=given["device"])
    return made


def load(path: Path, name: str) -> types.ModuleType:
    """A module of its own from a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def part_of_script(path: Path, names: tuple[str, ...], **scope: object) -> types.ModuleType:
    """A module with some of a script's functions and constants alone: to run the script would train."""

    def named(node: ast.stmt) -> bool:
        targets = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        return getattr(node, "name", None) in names or any(target in names for target in targets)

    found = [node for node in ast.parse(path.read_text()).body if named(node)]
    module = sys.modules[path.stem] = types.ModuleType(path.stem)
    vars(module).update(scope)
    exec(compile(ast.Module(found, []), str(path), "exec"), vars(module))
    return module


def published(given: dict, params: list[torch.nn.Parameter], compiled: bool) -> Callable[[], object]:
    """A step of KellerJordan/Muon."""
    module = load(Path(given["muon"]) / "muon.py", f"muon_{compiled}")
    if compiled:  # as the track's baseline does
        module.muon_update = torch.compile(module.muon_update, dynamic=False)
    return module.SingleDeviceMuon(params, **given["settings"]).step


def speedrun(given: dict, params: list[torch.nn.Parameter]) -> Callable[[], None]:
    """A step with modded-nanogpt's momentum and orthogonalisation; decay and rate are a compiled line here."""
    folder = Path(given["speedrun"])
    sys.path.insert(0, str(folder))
    kernels = importlib.import_module("triton_kernels")
    own = {name: getattr(kernels, name) for name in KERNELS}
    names = ("polar_express_coeffs", "polar_express")
    polar_express = part_of_script(folder / "train_gpt.py", names, torch=torch, **own).polar_express
    lr, weight_decay, momentum = (given["settings"][name] for name in ("lr", "weight_decay", "momentum"))
    buffers, momentum = [torch.zeros_like(p) for p in params], torch.tensor(momentum)

    @torch.compile(dynamic=False)
    def apply(p: torch.Tensor, direction: torch.Tensor) -> None:
        scale = max(1, p.size(-2) / p.size(-1)) ** 0.5
        p.mul_(1 - lr * weight_decay).sub_(lr * scale * direction)

    @torch.no_grad()
    def step() -> None:
        for p, buffer in zip(params, buffers):
            apply(p, polar_express(p.grad, buffer, momentum, split_baddbmm=p.size(-2) > 1024))

    return step


def wait(given: dict) -> None:
    if given["device"] == "cuda":
        torch.cuda.synchronize()


def prepared(given: dict, stacked: bool, make: Callable) -> tuple[Callable[[], object], float]:
    """A warm step, and the root mean square of the first update over the learning rate."""
    params = parameters(given, stacked)
    step = make(params)
    step()
    elements = sum(p.numel() for p in params)
    square = sum(float(p.detach().square().sum()) for p in params)
    for _ in range(WARM_UP - 1):
        step()
    wait(given)
    return step, (square / elements) ** 0.5 / given["settings"]["lr"]


def main() -> None:
    given = json.loads(sys.argv[1])
    asked: dict[str, tuple[str, bool, Callable]] = {}
    if given["muon"]:
        asked["muon.py, a matrix at a time"] = "standard", False, lambda p: published(given, p, False)
        asked["muon.py, compiled"] = "standard", False, lambda p: published(given, p, True)
        asked["muon.py, stacks, compiled"] = "standard", True, lambda p: published(given, p, True)
    if given["speedrun"]:
        asked["polar_express of train_gpt.py, stacks"] = "polar_express", True, lambda p: speedrun(given, p)
    steps, updates, failed = {}, {}, {}
    for name, (coefficients, stacked, make) in asked.items():
        try:
            steps[name], rms = prepared(given, stacked, make)
            updates[name] = {"coefficients": coefficients, "rms": rms}
        except Exception as error:  # noqa: BLE001 (the others go on)
            failed[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    say(version=f"torch {torch.__version__}", updates=updates, left_out=failed)
    for line in sys.stdin:
        asked_for = json.loads(line)
        step, count = steps[asked_for["name"]], asked_for["count"]
        wait(given)
        began = time.perf_counter()
        for _ in range(count):
            step()
        wait(given)
        say(seconds=(time.perf_counter() - began) / count)


if __name__ == "__main__":
    main()
