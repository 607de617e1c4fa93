"""The sandboxes' cores: what containers and bubblewrap are asked for, and frames of output."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.host.engines.plan import ChildBounds, ChildPlan, Mount
from peer.host.sandbox.bubblewrap_plan import Tools, bubblewrap_command
from peer.host.sandbox.container_engine import parse_version
from peer.host.sandbox.container_plan import EngineFacts, Seccomp, container_config
from peer.host.sandbox.control_groups import group_settings
from peer.host.sandbox.frames import FrameError, FrameReader, Stream
from peer.host.sandbox.settings import ROOTLESS_START, Base, Machine, UnfitPlanError, bounded

GIB = 1024**3
MACHINE = Machine(memory_bytes=10 * GIB, open_files_count_max=1000, processes_count_max=5000)
BASE = Base(
    image="empty",
    mounts=(Mount(Path("/usr"), PurePosixPath("/usr")),),
    python="/usr/bin/python3",
    keeper="/k/keeper.py",
    env={"PYTHONPATH": "/opt/engine"},
)
PODMAN = EngineFacts(
    kind="podman",
    version=(4, 3, 1),
    is_rootless=False,
    can_bound=frozenset({"memory", "pids", "cpu"}),
)
DOCKER = replace(PODMAN, kind="docker", version=(28, 2, 2))
SECCOMP = Seccomp(path="/p/seccomp.json", document='{"defaultAction": "SCMP_ACT_ERRNO"}')
PLAN = ChildPlan(
    name="main",
    argv=("/usr/bin/llama", "--model", "/models/a"),
    socket_dir=Mount(Path("/data/engine"), PurePosixPath("/run/engine")),
    read_only=(Mount(Path("/m/a:b.gguf"), PurePosixPath("/models/a")),),
    env={"OMP_NUM_THREADS": "4"},
    bounds=ChildBounds(memory_bytes_max=2 * GIB, pids_count_max=64, cpu_millicores_max=1500),
)
GPU = "GPU-12345678-1234-1234-1234-123456789abc"


def config(plan: ChildPlan = PLAN, facts: EngineFacts = PODMAN) -> dict:
    made = container_config(
        plan, base=BASE, facts=facts, machine=MACHINE, seccomp=SECCOMP, owner="me"
    )
    return json.loads(json.dumps(made))


def bwrap(plan: ChildPlan = PLAN, **tools: object) -> list[str]:
    return bubblewrap_command(
        plan,
        base=BASE,
        machine=MACHINE,
        tools=replace(Tools(bwrap="/usr/bin/bwrap", is_root=False), **tools),
        seccomp_descriptor=9,
    )


def test_container_has_no_way_out() -> None:
    made = config()
    host = made["HostConfig"]
    assert made["User"] == "65532:65532"
    assert made["NetworkDisabled"] is True
    assert made["Labels"] == {"net.sparewatt.owner": "me"}
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["Privileged"] is False
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges", "seccomp=/p/seccomp.json"]
    assert host["IpcMode"] == "private"
    assert host["Tmpfs"] == {"/tmp": "rw,size=268435456,noexec,nosuid,nodev"}
    assert host["Memory"] == host["MemorySwap"] == 2 * GIB
    assert host["PidsLimit"] == 64
    assert host["NanoCpus"] == 1_500_000_000
    assert {"Devices", "DeviceRequests", "Binds", "CapAdd", "PidMode", "UsernsMode"}.isdisjoint(
        host
    )


def test_container_may_write_to_its_socket_directory_and_cache_alone() -> None:
    cache = Mount(Path("/data/cache"), PurePosixPath("/cache"))
    mounts = config(replace(PLAN, cache_dir=cache))["HostConfig"]["Mounts"]
    written = {each["Target"]: each["Source"] for each in mounts if not each["ReadOnly"]}
    assert written == {"/run/engine": "/data/engine", "/cache": "/data/cache"}
    read = {each["Target"]: each["Source"] for each in mounts if each["ReadOnly"]}
    assert read == {"/usr": "/usr", "/models/a": "/m/a:b.gguf"}  # a colon is a letter like others


def same(path: str) -> Mount:
    return Mount(Path(path), PurePosixPath(path))


def test_what_is_shown_already_is_mounted_once() -> None:
    shown_by_base = (same("/usr"), same("/usr/local/python"))
    elsewhere = Mount(Path("/usr/share/model"), PurePosixPath("/models/b"))
    plan = replace(PLAN, read_only=(*shown_by_base, elsewhere))
    mounts = config(plan)["HostConfig"]["Mounts"]
    read = [each["Target"] for each in mounts if each["ReadOnly"]]
    assert read == ["/usr", "/models/b"]
    words = bwrap(plan)
    bound = [words[at + 2] for at, word in enumerate(words) if word == "--ro-bind"]
    assert bound == ["/usr", "/models/b"]


def test_plan_may_show_more_around_what_the_base_shows() -> None:
    mounts = config(replace(PLAN, read_only=(same("/"),)))["HostConfig"]["Mounts"]
    assert [each["Target"] for each in mounts if each["ReadOnly"]] == ["/"]


def test_container_runs_its_program_under_the_keeper_and_knows_nothing_of_ours(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    made = config()
    keeper = ["/usr/bin/python3", "-I", "-S", "/k/keeper.py", "10.0"]
    assert made["Entrypoint"] == [*keeper, *PLAN.argv]
    assert made["Cmd"] == []
    assert "secret" not in json.dumps(made)
    assert {"OMP_NUM_THREADS=4", "PYTHONPATH=/opt/engine", "HOME=/tmp"} <= set(made["Env"])


def test_docker_gets_the_policy_itself() -> None:
    options = config(facts=DOCKER)["HostConfig"]["SecurityOpt"]
    assert options == ["no-new-privileges", f"seccomp={SECCOMP.document}"]


def test_rootless_container_opens_its_files_to_us_and_bounds_itself() -> None:
    bare = replace(PODMAN, can_bound=frozenset(), is_rootless=True)
    entry = config(facts=bare)["Entrypoint"]
    assert "os.umask(0)" in entry[4]
    assert entry[5] == f"NOFILE=1000,CORE=0,DATA={2 * GIB},NPROC=64"
    assert entry[6:] == config()["Entrypoint"]


def test_rootless_start_sets_what_it_is_told(tmp_path) -> None:
    show = (
        "import os, resource as r; print(r.getrlimit(r.RLIMIT_CORE), r.getrlimit(r.RLIMIT_NPROC), "
        "os.umask(0))"
    )
    words = [sys.executable, "-I", "-S", "-c", ROOTLESS_START, "CORE=0,NPROC=500"]
    done = subprocess.run(
        [*words, sys.executable, "-c", show], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(0, 0) (500, 500) 0"


def test_bounds_that_the_engine_lacks_are_left_out() -> None:
    host = config(facts=replace(PODMAN, can_bound=frozenset({"memory"})))["HostConfig"]
    assert host["Memory"] == 2 * GIB
    assert {"PidsLimit", "NanoCpus"}.isdisjoint(host)


def ulimits(facts: EngineFacts) -> dict[str, int]:
    return {each["Name"]: each["Hard"] for each in config(facts=facts)["HostConfig"]["Ulimits"]}


def test_container_without_control_groups_is_bounded_process_by_process() -> None:
    assert ulimits(PODMAN) == {"nofile": 1000, "core": 0, "nproc": 5000}
    bare = replace(PODMAN, can_bound=frozenset(), is_rootless=True)
    assert ulimits(bare) == {"nofile": 1000, "core": 0, "nproc": 64, "data": 2 * GIB}


def test_plan_without_bounds_gets_some() -> None:
    made = bounded(ChildBounds(), MACHINE)
    assert made == ChildBounds(
        memory_bytes_max=9 * GIB, shared_memory_bytes=64 * 1024**2, pids_count_max=1024
    )


@pytest.mark.parametrize(
    ("facts", "is_fit"),
    [
        (PODMAN, False),
        (replace(PODMAN, version=(5, 4, 0)), True),
        (replace(DOCKER, version=(24, 0, 7)), False),
        (DOCKER, True),
    ],
)
def test_gpus_are_lent_by_their_cdi_names(facts, is_fit) -> None:
    plan = replace(PLAN, gpus=(GPU,))
    if not is_fit:
        with pytest.raises(UnfitPlanError, match="bubblewrap"):
            config(plan, facts)
        return
    made = config(plan, facts)
    request = {"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={GPU}"]}
    assert made["HostConfig"]["DeviceRequests"] == [request]
    assert f"CUDA_VISIBLE_DEVICES={GPU}" in made["Env"]


def test_plan_that_needs_a_network_is_refused() -> None:
    plan = replace(PLAN, needs_network=True)
    with pytest.raises(UnfitPlanError, match="network"):
        config(plan)
    with pytest.raises(UnfitPlanError, match="network"):
        bwrap(plan)


def test_image_of_a_plan_is_taken_by_containers_and_refused_by_bubblewrap() -> None:
    plan = replace(PLAN, image="vllm:1")
    assert config(plan)["Image"] == "vllm:1"
    assert config()["Image"] == "empty"
    with pytest.raises(UnfitPlanError, match="vllm:1"):
        bwrap(plan)


def after(words: list[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def test_bubblewrap_unshares_everything() -> None:
    words = bwrap()
    for each in ("ipc", "pid", "net", "uts", "user"):
        assert f"--unshare-{each}" in words
    assert {"--unshare-cgroup-try", "--new-session", "--die-with-parent"} <= set(words)
    assert after(words, "--seccomp") == ["9"]
    assert after(words, "--cap-drop") == ["ALL"]
    assert after(words, "--cap-add") == []
    assert after(words, "--uid") == ["65532"]
    assert set(after(words, "--bind")) == {"/data/engine"}
    assert "/m/a:b.gguf" in after(words, "--ro-bind")
    assert words.index("--remount-ro") > words.index("--bind")
    assert words[-len(PLAN.argv) :] == list(PLAN.argv)


def test_bubblewrap_of_root_becomes_another_user_for_good() -> None:
    words = bwrap(is_root=True, group_files=("/sys/fs/cgroup/pids/x/cgroup.procs",))
    assert "--unshare-user" not in words
    change = words[words.index("/usr/bin/setpriv") :]
    wanted = {"--reuid=65532", "--regid=65532", "--clear-groups", "--no-new-privs"}
    assert wanted | {"--bounding-set=-all", "--inh-caps=-all"} <= set(change)
    assert words.index("/sys/fs/cgroup/pids/x/cgroup.procs") < words.index("--")
    assert not any(word.startswith("--data=") for word in words)  # the group bounds all together


def test_bubblewrap_without_control_groups_bounds_each_process() -> None:
    assert {"--nproc=64", f"--data={2 * GIB}", "--nofile=1000", "--core=0"} <= set(bwrap())


def test_bubblewrap_makes_directories_above_mounts_for_all() -> None:
    words = bwrap()
    assert words[words.index("/models") - 3 :][:4] == ["--perms", "0755", "--dir", "/models"]


@pytest.mark.parametrize("is_unified", [True, False])
def test_control_group_bounds_memory_processes_and_processors(is_unified) -> None:
    text = str(group_settings(PLAN.bounds, is_unified=is_unified))
    assert str(2 * GIB) in text
    assert "'64'" in text
    assert "150000" in text


@pytest.mark.parametrize(
    ("text", "version"),
    [("4.3.1", (4, 3, 1)), ("28.2.2", (28, 2, 2)), ("5.4.0-dev", (5, 4, 0)), ("x", ()), ("", ())],
)
def test_version_is_read(text, version) -> None:
    assert parse_version(text) == version


PIECES = st.lists(st.tuples(st.sampled_from([Stream.STDOUT, Stream.STDERR]), st.binary(max_size=9)))


@given(pieces=PIECES, cuts=st.lists(st.integers(1, 7), min_size=1, max_size=40))
def test_frames_are_whole_however_they_are_cut(pieces, cuts) -> None:
    data = b"".join(bytes([s, 0, 0, 0]) + len(p).to_bytes(4, "big") + p for s, p in pieces)
    reader, got = FrameReader(), {Stream.STDOUT: b"", Stream.STDERR: b""}
    while data:
        cut = cuts[len(data) % len(cuts)]
        for stream, piece in reader.feed(data[:cut]):
            got[stream] += piece
        data = data[cut:]
    for stream, whole in got.items():
        assert whole == b"".join(p for s, p in pieces if s is stream)


@pytest.mark.parametrize("header", [b"\x03\0\0\0\0\0\0\x01", b"\x01\0\0\0\xff\xff\xff\xff"])
def test_what_is_no_frame_is_refused(header) -> None:
    with pytest.raises(FrameError):
        FrameReader().feed(header)
