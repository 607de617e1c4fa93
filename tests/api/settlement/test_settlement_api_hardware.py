"""Hardware over HTTP: reports, and a challenge that is really solved."""

import base64
import json
from dataclasses import asdict
from random import Random

import pytest
from settlement_api_kit import require_problem, text

from p2p import limits
from p2p.puzzle import ROWS_COUNT, SEGMENT_WORDS_COUNT, puzzle_of
from peer.host.challenge.worker import NumpyDevice, Solver
from peer.host.hardware.fake import FakeGpu, FakeNvml
from peer.host.hardware.nvml import read_gpus

pytestmark = pytest.mark.sockets

MIB = 2**20
PATH = "/v1/hosts/hardware"


def machine(*gpus: dict) -> dict:
    return {
        "cpu_name": "Some CPU",
        "cpu_cores_count": 8,
        "cpu_threads_count": 16,
        "memory_bytes": 64 * MIB,
        "disk_bytes": 0,
        "disk_free_bytes": 0,
        "gpus": list(gpus),
    }


def gpu(number: int = 0) -> dict:
    """Return a card as the host reports it, with a uuid of this test's own."""
    uuid = f"GPU-{Random(number).randbytes(4).hex()}-6b14-3f7e-9d36-0c4f5a0d7c11"
    (facts,), _ = read_gpus(FakeNvml([FakeGpu(uuid=uuid)]))
    return asdict(facts)


def solver_of(seed: bytes, memory_bytes: int) -> tuple[Solver, bytes]:
    puzzle = puzzle_of(seed, memory_bytes)
    device = NumpyDevice()
    device.allocate(ROWS_COUNT, puzzle.row_segments_count, SEGMENT_WORDS_COUNT)
    solver = Solver(device, puzzle, lambda share: None)
    return solver, solver.solve()


def challenge(world, device: str = "cpu", memory_bytes: int = 16 * MIB) -> dict:
    body = {"device": device, "memory_bytes": memory_bytes}
    answer = world.signed(world.bob.node, "POST", "/v1/hosts/challenges", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def commit(world, made: dict, roots: bytes):
    path = f"/v1/hosts/challenges/{made['challenge_id']}/commitment"
    return world.signed(world.bob.node, "POST", path, {"roots": text(roots)})


def show(world, made: dict, answer: bytes, **speeds: float):
    path = f"/v1/hosts/challenges/{made['challenge_id']}/answer"
    body = {"answer": text(answer), "copy_gb_per_s": 10.0, "matmul_tflops": 0.05, **speeds}
    return world.signed(world.bob.node, "POST", path, body)


def known(world) -> dict:
    path = f"/v1/hosts/{world.bob.node.peer_id}/hardware"
    answer = world.signed(world.alice.node, "GET", path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_host_that_is_honest_goes_from_nothing_to_challenged(world):
    assert (known(world)["level"], known(world)["devices"]) == ("none", [])
    reply = world.signed(world.bob.node, "POST", PATH, machine())
    assert reply.json() == {"level": "self-reported", "renew_within_s": 300}
    made = challenge(world)
    solver, roots = solver_of(bytes.fromhex(made["seed"]), made["memory_bytes"])
    asked = commit(world, made, roots)
    assert asked.status_code == 200, asked.text
    assert commit(world, made, roots).json() == asked.json()
    samples = [tuple(each) for each in asked.json()["samples"]]
    proof = show(world, made, solver.show(roots, samples))
    assert proof.json()["outcome"] == "passed", proof.text
    assert proof.json()["proven_bytes"] == puzzle_of(bytes(32), 16 * MIB).fill_bytes
    seen = known(world)
    assert seen["level"] == "challenged"
    assert seen["devices"][0]["copy_gb_per_s"] == 10.0
    assert seen["devices"][0]["challenged_at"] == "2027-01-15T08:00:00.000Z"
    require_problem(show(world, made, b""), 409, "over")


def test_host_that_replays_an_old_answer_is_caught(world):
    world.signed(world.bob.node, "POST", PATH, machine())
    first = challenge(world)
    solver, roots = solver_of(bytes.fromhex(first["seed"]), first["memory_bytes"])
    samples = commit(world, first, roots).json()["samples"]
    answer = solver.show(roots, [tuple(each) for each in samples])
    assert show(world, first, answer).json()["outcome"] == "passed"
    world.clock.now_ns += 5 * limits.MINUTE_NS
    second = challenge(world)
    assert second["seed"] != first["seed"]
    assert commit(world, second, roots).status_code == 200
    proof = show(world, second, answer).json()
    assert (proof["outcome"], proof["proven_bytes"]) == ("failed", 0)
    assert known(world)["level"] == "self-reported"


def test_host_that_is_late_is_refused(world):
    world.signed(world.bob.node, "POST", PATH, machine())
    made = challenge(world)
    world.clock.now_ns += 10 * limits.MINUTE_NS
    require_problem(commit(world, made, bytes(8192)), 409, "late")
    made = challenge(world)
    assert commit(world, made, bytes(8192)).status_code == 200
    world.clock.now_ns += 31 * limits.SECOND_NS
    require_problem(show(world, made, b""), 409, "late")


def test_gpu_on_two_hosts_is_refused_to_the_second_and_says_whose_it_is(world):
    assert world.signed(world.bob.node, "POST", PATH, machine(gpu(1))).status_code == 200
    carol = world.party("host")
    error = require_problem(
        world.signed(carol.node, "POST", PATH, machine(gpu(1))), 409, "gpu_taken"
    )
    assert error["param"] == "gpus"
    assert world.bob.node.peer_id in error["message"]
    assert "free from 2027-01-16T08:00:00.000Z on" in error["message"]
    world.clock.now_ns += limits.DAY_NS
    assert world.signed(carol.node, "POST", PATH, machine(gpu(1))).status_code == 200


def test_gpu_is_told_to_others_without_what_names_the_piece(world):
    world.signed(world.bob.node, "POST", PATH, machine(gpu(2)))
    (device,) = known(world)["devices"]
    assert (device["kind"], device["name"]) == ("gpu", "NVIDIA GeForce RTX 3090")
    assert device["proven_bytes"] is None
    assert gpu(2)["uuid"] not in str(known(world))


def test_gateway_may_neither_report_nor_be_challenged(world):
    node = world.alice.node
    require_problem(world.signed(node, "POST", PATH, machine()), 403, "wrong_role")
    body = {"device": "cpu", "memory_bytes": 16 * MIB}
    answer = world.signed(node, "POST", "/v1/hosts/challenges", body)
    require_problem(answer, 404, "no_report")


def test_hardware_is_told_to_members_only(world):
    path = f"/v1/hosts/{world.bob.node.peer_id}/hardware"
    require_problem(world.http.get(path), 401, "missing")
    assert world.bearer(world.alice.token, "GET", path).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"gpus": [{"uuid": "GPU-1", "name": "x", "memory_bytes": 1}]},
        {"gpus": [gpu(3), gpu(3)]},
        {"gpus": [gpu(4)] * 65},
        {"cpu_cores_count": 0},
        {"memory_bytes": 2**60},
        {"cpu_name": "x" * 200},
        {"more": 1},
    ],
    ids=["uuid", "twice", "many", "cores", "memory", "name", "extra"],
)
def test_report_that_can_not_be_is_refused(world, change):
    answer = world.signed(world.bob.node, "POST", PATH, {**machine(), **change})
    require_problem(answer, 400, "invalid_request")


def test_challenge_without_a_report_and_too_soon_is_refused(world):
    body = {"device": "cpu", "memory_bytes": 16 * MIB}
    ask = ("POST", "/v1/hosts/challenges", body)
    require_problem(world.signed(world.bob.node, *ask), 404, "no_report")
    world.signed(world.bob.node, "POST", PATH, machine())
    assert len(base64.b16decode(challenge(world)["seed"], casefold=True)) == 32
    answer = world.signed(world.bob.node, *ask)
    require_problem(answer, 429, "too_soon")
    assert "retry-after" in answer.headers
    made = {"challenge_id": "0" * 32}
    require_problem(commit(world, made, bytes(8192)), 404, "challenge_not_found")
    require_problem(commit(world, made, b"short"), 400, "invalid_request")


@pytest.mark.parametrize("speed", [-1.0, 1e7])
def test_answer_with_a_speed_that_can_not_be_is_refused(world, speed):
    world.signed(world.bob.node, "POST", PATH, machine())
    made = challenge(world)
    require_problem(show(world, made, b"", matmul_tflops=speed), 400, "invalid_request")


@pytest.mark.parametrize("extra", ['"cpu_cores_count": NaN, ', '"gpus": Infinity, '])
def test_report_that_an_audit_could_not_read_is_refused(world, extra):
    content = ("{" + extra + json.dumps(machine())[1:]).encode()
    headers = {
        "authorization": world.proof(world.bob.node, "POST", PATH, content),
        "content-type": "application/json",
    }
    answer = world.http.post(PATH, content=content, headers=headers)
    require_problem(answer, 400, "invalid_request")
    assert known(world)["level"] == "none"
