"""Processes that lose one of them, wait for one in vain or are frozen: real ones, without JAX."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from chaos.kills import free_port

from lab import ROOT
from train.peers import keep_alive

# Each takes steps for as long as it may; `how` says what happens to it at step 5.
PROGRAM = """
import sys, time
from train import peers
number, port, of = map(int, sys.argv[1:4])
patience, how = peers.Patience(*map(float, sys.argv[4:7])), sys.argv[7]
try:
    ours = peers.meet(f"127.0.0.1:{port}", of, number, patience)
except peers.UserError as error:
    sys.exit(f"refused: {error}")
ours.wait("the door")
for step in range(1, 2000 if how == "walk" else 6):
    ours.reached(f"step {step}")
    if step == 5:
        print("five", flush=True)
    time.sleep(0.01)
if how == "hang":
    time.sleep(60)
if how == "fail":
    ours.fail("the loss is nan")
    sys.exit(3)
ours.wait("the end")
ours.finish()
"""


class Run:
    """Three processes, or as many as there are words in `hows`."""

    def __init__(
        self, *hows: str, stuck: float = 60, silent: float = 60, start: float = 60, of: tuple[int, ...] = ()
    ):
        self.port = free_port()
        self.processes = []
        for number, how in enumerate(hows):
            given = (number, self.port, of[number] if of else len(hows), stuck, silent, start, how)
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, *map(str, given)],
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def walk(self) -> None:
        """Until all are at their fifth step."""
        for process in self.processes:
            assert process.stdout.readline() == "five\n", process.communicate()

    def ends(self) -> list[tuple[int, str]]:
        """Exit code and last words of each that is not stopped."""
        try:
            told = [process.communicate(timeout=30)[1] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.communicate()
        return [(process.returncode, words.strip()) for process, words in zip(self.processes, told)]


HOST = socket.gethostname()
AGAIN = "; start all processes again with the same command, they continue from the last checkpoint"


def test_all_wait_for_all_and_end_well():
    assert Run("end", "end", "end").ends() == [(0, "")] * 3


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_is_named_by_all_others(lost):
    run = Run("walk", "walk", "walk")
    run.walk()
    began = time.monotonic()
    run.processes[lost].kill()
    ended = run.ends()
    assert time.monotonic() - began < 10
    for number in {0, 1, 2} - {lost}:
        prefix = "launch.py: " + (f"process {number} on {HOST} stops: " if number else "")
        assert ended[number] == (2, f"{prefix}process {lost} on {HOST} ended{AGAIN}")


@pytest.mark.parametrize("frozen", [0, 2])
def test_a_frozen_process_is_named_and_ends_when_it_wakes(frozen):
    run = Run("walk", "walk", "walk", silent=2.5)
    run.walk()
    run.processes[frozen].send_signal(signal.SIGSTOP)
    others = [process for number, process in enumerate(run.processes) if number != frozen]
    for process in others:
        assert process.wait(timeout=20) == 2
    run.processes[frozen].send_signal(signal.SIGCONT)
    for number, (code, words) in enumerate(run.ends()):
        assert code == 2, words
        if number != frozen:
            assert f"process {frozen} on {HOST} does not answer for 2 s{AGAIN}" in words
    # Awake, it says what it was told while it slept or, where that was nothing, that the others are gone.


def test_a_process_whose_loop_hangs_is_named():
    ended = Run("walk", "hang", "walk", stuck=1).ends()
    assert [code for code, _ in ended] == [2, 2, 2]
    for _, words in ended:
        assert f"process 1 on {HOST} is stuck at step 5 for 1 s, others are at step" in words


def test_those_that_do_not_come_to_the_barrier_are_named():
    ended = Run("end", "hang", "hang", stuck=1).ends()
    assert [code for code, _ in ended] == [2, 2, 2]
    stuck = f"process 1 on {HOST}, process 2 on {HOST} are stuck at step 5 for 1 s, others are at the end"
    assert all(stuck in words for _, words in ended)


def test_where_all_hang_nobody_is_blamed():
    ended = Run("hang", "hang", stuck=1).ends()
    assert all(words.endswith(f"no process got beyond step 5 in 1 s{AGAIN}") for _, words in ended)


@pytest.mark.parametrize("who", [0, 1])
def test_what_went_wrong_in_one_is_told_by_all(who):
    ended = Run(*("fail" if number == who else "walk" for number in range(3))).ends()
    assert ended[who][0] == 3
    for number in {0, 1, 2} - {who}:
        assert ended[number][0] == 2
        assert f"process {who} on {HOST} ended: the loss is nan" in ended[number][1]


def test_who_was_started_with_other_flags_or_twice_is_named():
    told = Run("end", "end", of=(2, 3)).ends()
    assert [words for _, words in told] == [
        f"refused: process 1 on {HOST} was started as one of 3 processes, process 0 of 2"
    ] * 2


def test_who_does_not_start_is_named_though_strangers_knock():
    run = Run("end", of=(3,), start=2)
    knocked = 0
    while run.processes[0].poll() is None and knocked < 3:
        try:
            with socket.create_connection(("127.0.0.1", run.port + 1), timeout=1) as stranger:
                stranger.sendall([b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"process": 1}\n'][knocked])
                knocked += 1
        except OSError:
            time.sleep(0.05)
    assert run.ends()[0][1] == "refused: process 1, process 2 did not start in 2 s"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="an option of Linux")
def test_an_answer_that_does_not_come_for_15_s_ends_a_connection():
    """Machines that vanish while something is on its way to them, which is always; no probe is sent then."""
    with keep_alive(socket.socket()) as connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
