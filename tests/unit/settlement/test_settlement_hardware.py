"""Who has which GPU, and whose memory is proven; on every store."""

import contextlib
import json
from dataclasses import replace

import msgspec
import pytest
from settlement_kit import BOB, HOST_MACHINE

from p2p import limits
from p2p.hardware.report import GpuFacts, HardwareReport
from p2p.hardware.verdict import Level, Speeds
from p2p.testing.money import NOW_NS, key
from peer.host.challenge.local import load_cards
from settlement.hardware_operations import (
    CPU,
    OTHER_OWNER_FREE_NS,
    PROOF_TTL_NS,
    REPORT_TTL_NS,
    REST_NS,
    SAME_OWNER_FREE_NS,
    Answer,
    ChallengeRefusal,
    GpuTaken,
    Request,
    Wish,
    answerable,
    commit,
    finish_challenge,
    hardware_view,
    issue_challenge,
    release,
    samples_for,
    stored_report,
    take_report,
)
from settlement.hardware_store import (
    Challenge,
    GpuClaim,
    GpuConflict,
    MemoryProof,
    StoredReport,
)
from settlement.service import _faults
from settlement.store import Account, Machine

GIB = 2**30
UUIDS = [f"GPU-5f1f4ac8-6b14-3f7e-9d36-0c4f5a0d7c1{digit}" for digit in "123"]
OWN_SECOND = Machine(key("second").peer_id, BOB.account_id, "host", NOW_NS)
STRANGER = Machine(key("stranger").peer_id, "carol", "host", NOW_NS)
CARDS = {}


def report_of(*uuids: str, memory_bytes: int = 64 * GIB) -> HardwareReport:
    name = "NVIDIA GeForce RTX 3090"
    return HardwareReport(
        cpu_name="Some CPU",
        cpu_cores_count=8,
        cpu_threads_count=16,
        memory_bytes=memory_bytes,
        disk_bytes=0,
        disk_free_bytes=0,
        gpus=tuple(GpuFacts(uuid=uuid, name=name, memory_bytes=24 * GIB) for uuid in uuids),
    )


@pytest.fixture
def hosts(books):
    with books.writing() as writing:
        writing.put_account(Account("carol", "Carol", NOW_NS))
        writing.put_machine(OWN_SECOND)
        writing.put_machine(STRANGER)
    return books


def reported(store, machine, *uuids, at_ns=NOW_NS, **options):
    report = report_of(*uuids, **options)
    request = Request(msgspec.json.encode(report), b"proof of " + machine.peer_id.encode())
    with store.writing() as writing:
        return take_report(writing, machine, report, request, now_ns=at_ns)


def holders(store):
    with store.reading() as reading:
        return {uuid: claim.peer_id for uuid, claim in reading.hardware.claims(UUIDS).items()}


# -- rows ---------------------------------------------------------------------------------------


def test_hardware_rows_read_back_as_written_and_replace_older_ones(store):
    peer, other = HOST_MACHINE.peer_id, OWN_SECOND.peer_id
    report = StoredReport(peer, b"body", b"proof", 1)
    claims = [GpuClaim(uuid, peer, 1, 2) for uuid in UUIDS]
    quarrels = [GpuConflict(uuid, other, peer, at, b"b", b"p") for at, uuid in enumerate(UUIDS)]
    challenge = Challenge("a" * 32, peer, CPU, b"seed", 5, 6, 7)
    newer = replace(challenge, challenge_id="b" * 32, roots=b"r", samples="[]", is_over=True)
    proof = MemoryProof(peer, CPU, 1, 2, 3, "x\ny", 4, b"p")
    with store.writing() as writing:
        for at in (report, replace(report, at_ns=2)):
            writing.hardware.put_report(at)
        writing.hardware.put_claims(claims)
        for quarrel in (*quarrels, replace(quarrels[0], at_ns=9)):
            writing.hardware.put_conflict(quarrel)
        writing.hardware.put_challenge(challenge)
        writing.hardware.put_challenge(newer)
        writing.hardware.put_proof(proof)
        writing.hardware.drop_claims(UUIDS[2:])
    with store.reading() as reading:
        assert reading.hardware.report(peer) == replace(report, at_ns=2)
        assert reading.hardware.report(other) is None
        assert reading.hardware.claims(UUIDS) == dict(zip(UUIDS[:2], claims[:2], strict=True))
        assert reading.hardware.claims_of(peer) == tuple(claims[:2])
        assert reading.hardware.conflicts(rows_max=2) == (
            replace(quarrels[0], at_ns=9),
            quarrels[2],
        )
        assert reading.hardware.challenge("a" * 32) is None
        assert reading.hardware.challenge("b" * 32) == newer
        assert reading.hardware.challenge_of(peer, CPU) == newer
        assert reading.hardware.proofs_of(peer) == (proof,)
    with store.writing() as writing:
        writing.hardware.drop_proofs(peer, [CPU])
        writing.hardware.drop_report(peer)
    with store.reading() as reading:
        assert reading.hardware.report(peer) is None
        assert reading.hardware.proofs_of(peer) == ()
        assert reading.hardware.challenge_of(peer, CPU) is None


def test_hardware_rows_of_what_raised_are_gone(store):
    with contextlib.suppress(KeyError), store.writing() as writing:
        writing.hardware.put_claims([GpuClaim(UUIDS[0], HOST_MACHINE.peer_id, 1, 1)])
        raise KeyError
    assert holders(store) == {}


# -- who has which GPU --------------------------------------------------------------------------


def test_report_claims_gpus_and_renews_them(hosts):
    assert reported(hosts, HOST_MACHINE, *UUIDS[:2]) is None
    assert reported(hosts, HOST_MACHINE, *UUIDS[:2], at_ns=NOW_NS + 5) is None
    with hosts.reading() as reading:
        claims = reading.hardware.claims_of(HOST_MACHINE.peer_id)
    assert claims == tuple(
        GpuClaim(uuid, HOST_MACHINE.peer_id, NOW_NS, NOW_NS + 5) for uuid in UUIDS[:2]
    )


@pytest.mark.parametrize(
    ("claimant", "wait_ns"), [(OWN_SECOND, SAME_OWNER_FREE_NS), (STRANGER, OTHER_OWNER_FREE_NS)]
)
def test_gpu_of_another_live_host_is_refused_with_evidence_until_it_is_free(
    hosts, claimant, wait_ns
):
    reported(hosts, HOST_MACHINE, UUIDS[0])
    taken = reported(hosts, claimant, UUIDS[1], UUIDS[0], at_ns=NOW_NS + wait_ns - 1)
    assert isinstance(taken, GpuTaken)
    assert (taken.claim.peer_id, taken.free_at_ns) == (HOST_MACHINE.peer_id, NOW_NS + wait_ns)
    assert holders(hosts) == {UUIDS[0]: HOST_MACHINE.peer_id}  # not the other one either
    with hosts.reading() as reading:
        (quarrel,) = reading.hardware.conflicts(rows_max=9)
        assert reading.hardware.report(claimant.peer_id) is None
    assert (quarrel.uuid, quarrel.peer_id) == (UUIDS[0], claimant.peer_id)
    assert quarrel.holder_peer_id == HOST_MACHINE.peer_id
    assert quarrel.proof == b"proof of " + claimant.peer_id.encode()
    assert reported(hosts, claimant, UUIDS[0], at_ns=NOW_NS + wait_ns) is None
    assert holders(hosts) == {UUIDS[0]: claimant.peer_id}


def test_gpu_that_moved_is_not_given_back_to_its_old_host(hosts):
    reported(hosts, HOST_MACHINE, *UUIDS[:2])
    moved_ns = NOW_NS + SAME_OWNER_FREE_NS
    reported(hosts, OWN_SECOND, UUIDS[0], at_ns=moved_ns)
    with hosts.reading() as reading:  # it must say anew what else it has
        assert reading.hardware.report(HOST_MACHINE.peer_id) is None
    assert holders(hosts) == {UUIDS[0]: OWN_SECOND.peer_id}
    assert isinstance(reported(hosts, HOST_MACHINE, *UUIDS[:2], at_ns=moved_ns + 1), GpuTaken)
    assert reported(hosts, HOST_MACHINE, UUIDS[1], at_ns=moved_ns + 2) is None


def test_gpu_that_its_host_reports_no_more_is_free_at_once(hosts):
    reported(hosts, HOST_MACHINE, *UUIDS[:2])
    reported(hosts, HOST_MACHINE, UUIDS[1], at_ns=NOW_NS + 1)
    assert reported(hosts, STRANGER, UUIDS[0], at_ns=NOW_NS + 2) is None
    assert holders(hosts) == {UUIDS[0]: STRANGER.peer_id, UUIDS[1]: HOST_MACHINE.peer_id}


def test_gpu_of_a_host_that_was_shut_out_is_free_at_once(hosts):
    reported(hosts, HOST_MACHINE, UUIDS[0])
    with hosts.writing() as writing:
        writing.put_machine(replace(HOST_MACHINE, revoked_at_ns=NOW_NS))
    assert reported(hosts, STRANGER, UUIDS[0], at_ns=NOW_NS + 1) is None


def test_gpu_that_the_operator_releases_is_free_at_once(hosts):
    reported(hosts, HOST_MACHINE, UUIDS[0])
    with hosts.writing() as writing:
        released = release(writing, UUIDS[0])
        assert released is not None
        assert released.peer_id == HOST_MACHINE.peer_id
        assert release(writing, UUIDS[0]) is None
    assert reported(hosts, STRANGER, UUIDS[0], at_ns=NOW_NS + 1) is None


# -- challenges ---------------------------------------------------------------------------------


def issued(store, wish, *, at_ns=NOW_NS, machine=HOST_MACHINE, name="a"):
    with store.writing() as writing:
        fresh = (name * 32, bytes(32))
        return issue_challenge(writing, machine, wish, fresh, now_ns=at_ns)


def committed(store, *, at_ns=NOW_NS, machine=HOST_MACHINE, roots=b"roots", name="a"):
    with store.writing() as writing:
        return commit(writing, machine, name * 32, roots, lambda most: most - 1, now_ns=at_ns)


def finished(store, challenge, *, fault="", at_ns=NOW_NS, speeds=None, cards=CARDS):
    answer = Answer(fault, speeds or Speeds(800, 60), b"signed")
    with store.writing() as writing:
        return finish_challenge(writing, challenge, answer, cards, now_ns=at_ns)


def view_of(store, *, at_ns=NOW_NS):
    with store.reading() as reading:
        return hardware_view(reading, HOST_MACHINE.peer_id, now_ns=at_ns)


GPU_WISH = Wish(UUIDS[0], 24 * GIB)


def test_challenge_of_a_gpu_that_is_passed_makes_its_host_challenged(hosts):
    assert view_of(hosts).level is Level.NONE
    reported(hosts, HOST_MACHINE, UUIDS[0])
    assert view_of(hosts).level is Level.SELF_REPORTED
    issued(hosts, GPU_WISH)
    proof = finished(hosts, committed(hosts))
    assert isinstance(proof, MemoryProof)
    assert 0.89 * 24 * GIB < proof.proven_bytes <= 0.9 * 24 * GIB
    view = view_of(hosts)
    assert view.level is Level.CHALLENGED
    (device,) = view.devices
    assert (device.kind, device.name, device.proof) == ("gpu", "NVIDIA GeForce RTX 3090", proof)
    # Reports come every five minutes; the proof is good for a month.
    late_ns = NOW_NS + PROOF_TTL_NS
    reported(hosts, HOST_MACHINE, UUIDS[0], at_ns=late_ns)
    assert view_of(hosts, at_ns=late_ns).level is Level.CHALLENGED
    assert view_of(hosts, at_ns=late_ns + 1).level is Level.SELF_REPORTED


def test_host_with_one_gpu_unproven_is_not_challenged(hosts):
    reported(hosts, HOST_MACHINE, *UUIDS[:2])
    issued(hosts, GPU_WISH)
    finished(hosts, committed(hosts))
    assert view_of(hosts).level is Level.SELF_REPORTED


def test_gpu_that_is_gone_takes_its_proof_along(hosts):
    reported(hosts, HOST_MACHINE, UUIDS[0])
    issued(hosts, GPU_WISH)
    finished(hosts, committed(hosts))
    reported(hosts, HOST_MACHINE, at_ns=NOW_NS + 1)
    reported(hosts, HOST_MACHINE, UUIDS[0], at_ns=NOW_NS + 2)
    assert view_of(hosts, at_ns=NOW_NS + 2).level is Level.SELF_REPORTED


def test_host_that_reports_no_more_is_nothing_after_a_day(hosts):
    reported(hosts, HOST_MACHINE)
    assert view_of(hosts, at_ns=NOW_NS + REPORT_TTL_NS).level is Level.SELF_REPORTED
    assert view_of(hosts, at_ns=NOW_NS + REPORT_TTL_NS + 1).level is Level.NONE


@pytest.mark.parametrize(
    ("wish", "refusal"),
    [
        (Wish(UUIDS[1], 24 * GIB), ChallengeRefusal.NO_DEVICE),
        (Wish(UUIDS[0], 8 * GIB), ChallengeRefusal.BAD_MEMORY),  # proves less than it reports
        (Wish(UUIDS[0], 25 * GIB), ChallengeRefusal.BAD_MEMORY),
        (Wish(CPU, 65 * GIB), ChallengeRefusal.BAD_MEMORY),
        (Wish(CPU, 2**20), ChallengeRefusal.BAD_MEMORY),
    ],
)
def test_challenge_that_does_not_fit_the_report_is_refused(hosts, wish, refusal):
    assert issued(hosts, wish) is ChallengeRefusal.NO_REPORT
    reported(hosts, HOST_MACHINE, UUIDS[0])
    assert issued(hosts, wish) is refusal


def test_challenge_too_soon_after_another_is_refused(hosts):
    reported(hosts, HOST_MACHINE, UUIDS[0])
    issued(hosts, GPU_WISH)
    assert issued(hosts, GPU_WISH, at_ns=NOW_NS + REST_NS - 1) is ChallengeRefusal.TOO_SOON
    assert isinstance(issued(hosts, GPU_WISH, at_ns=NOW_NS + REST_NS, name="b"), Challenge)
    assert committed(hosts, at_ns=NOW_NS + REST_NS) is ChallengeRefusal.UNKNOWN


def test_commitment_may_be_repeated_and_not_be_changed(hosts):
    reported(hosts, HOST_MACHINE, UUIDS[0])
    issued(hosts, GPU_WISH)
    first = committed(hosts)
    assert committed(hosts, at_ns=NOW_NS + 1) == first
    assert committed(hosts, roots=b"other") is ChallengeRefusal.OTHER_COMMITMENT
    assert len(samples_for(first)) == len(json.loads(first.samples)) == 24


def test_commitment_that_is_late_is_refused(hosts):
    reported(hosts, HOST_MACHINE, UUIDS[0])
    challenge = issued(hosts, GPU_WISH)
    assert 60 < (challenge.commit_by_ns - NOW_NS) / limits.SECOND_NS < 150
    assert committed(hosts, at_ns=challenge.commit_by_ns + 1) is ChallengeRefusal.LATE


def test_challenge_of_another_host_is_not_there(hosts):
    reported(hosts, HOST_MACHINE, UUIDS[0])
    issued(hosts, GPU_WISH)
    assert committed(hosts, machine=STRANGER) is ChallengeRefusal.UNKNOWN
    committed(hosts)
    with hosts.reading() as reading:
        found = answerable(reading, STRANGER, "a" * 32, now_ns=NOW_NS)
    assert found is ChallengeRefusal.UNKNOWN


def test_answer_is_taken_in_its_time_and_once(hosts):
    reported(hosts, HOST_MACHINE, UUIDS[0])
    issued(hosts, GPU_WISH)

    def standing(at_ns=NOW_NS):
        with hosts.reading() as reading:
            return answerable(reading, HOST_MACHINE, "a" * 32, now_ns=at_ns)

    assert standing() is ChallengeRefusal.NOT_COMMITTED
    challenge = committed(hosts)
    assert standing() == challenge
    assert standing(challenge.answer_by_ns) == challenge
    assert standing(challenge.answer_by_ns + 1) is ChallengeRefusal.LATE
    assert isinstance(finished(hosts, challenge), MemoryProof)
    assert standing() is ChallengeRefusal.OVER
    assert finished(hosts, challenge) is ChallengeRefusal.OVER


def test_answer_that_is_wrong_proves_nothing_and_is_remembered(hosts):
    reported(hosts, HOST_MACHINE, UUIDS[0])
    issued(hosts, GPU_WISH)
    challenge = committed(hosts, roots=bytes(8192))
    (fault,) = _faults(challenge, "test", [b"wrong"])
    proof = finished(hosts, challenge, fault=fault)
    assert (proof.proven_bytes, proof.problems) == (0, fault)
    assert "wrong length" in fault
    assert view_of(hosts).level is Level.SELF_REPORTED


def test_card_that_is_not_what_its_name_says_is_not_challenged(hosts):
    reported(hosts, HOST_MACHINE, UUIDS[0])
    issued(hosts, GPU_WISH)
    slow = Speeds(320, 22)  # what a smaller card of that maker does
    proof = finished(hosts, committed(hosts), speeds=slow, cards=load_cards())
    assert [line.split(" is ")[0] for line in proof.problems.splitlines()] == [
        "memory bandwidth in GB/s",
        "bf16 matmul in TFLOPs",
    ]
    assert proof.proven_bytes > 0
    assert view_of(hosts).level is Level.SELF_REPORTED


def test_processor_proves_as_much_as_it_offers(hosts):
    reported(hosts, HOST_MACHINE)
    issued(hosts, Wish(CPU, GIB))
    finished(hosts, committed(hosts))
    view = view_of(hosts)
    assert (view.level, view.devices[0].kind) == (Level.CHALLENGED, "cpu")
    assert view.devices[0].proof.proven_bytes == pytest.approx(0.9 * GIB, rel=0.01)
    with hosts.reading() as reading:
        assert stored_report(reading, HOST_MACHINE.peer_id) == report_of()
