"""The container files, checked without a container engine.

docker-compose.yml is held against the schema of the Compose Specification (tests/data/compose-spec.json, whose origin the
NOTICE beside it states); the Dockerfile is parsed as far as its promises need, and its health check is run.
"""

import json
import os
import subprocess
import sys
import threading
import tomllib
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from compose.settings import Settings
from compose.stack.kafka_jars import BROKER_SETTINGS
from tests.services import environment_name, free_port

REPOSITORY = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose" / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
INSTRUCTIONS = {"FROM", "RUN", "CMD", "EXPOSE", "ENV", "COPY", "ENTRYPOINT", "USER", "WORKDIR", "HEALTHCHECK"}
ROOT = {"root", "0", "0:0", ""}


def instructions() -> list[tuple[str, str]]:
    """(name, arguments) of every instruction of the Dockerfile, continued lines joined."""
    lines = (REPOSITORY / "compose" / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def last_stage() -> list[tuple[str, str]]:
    """The instructions after the last FROM: those of the image that is kept."""
    found = instructions()
    start = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return found[start + 1 :]


def set_in_the_image() -> dict[str, str]:
    return dict(word.split("=", 1) for name, rest in last_stage() if name == "ENV" for word in rest.split())


def probe(port: int) -> int:
    """Exit code of the image's health check for a program that serves its metrics on this port."""
    check = next(rest for name, rest in last_stage() if name == "HEALTHCHECK")
    _, *arguments = json.loads(check[check.index("[") :])
    environment = {**os.environ, "MILLSTREAM_METRICS_PORT": str(port)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False).returncode  # noqa: S603 - our file


class Metrics(BaseHTTPRequestHandler):
    """Answers /metrics and nothing else."""

    def do_GET(self) -> None:
        """200 for /metrics, else 404."""
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_the_compose_file_follows_the_compose_specification() -> None:
    """No key is misspelled and no value has a shape that Compose refuses."""
    schema = json.loads((REPOSITORY / "tests" / "data" / "compose-spec.json").read_text())
    faults = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(COMPOSE)]

    assert faults == []


def test_the_services_are_the_platform_and_what_it_needs() -> None:
    """Kafka, the store, and three verbs of the one image."""
    ours = {name: service["command"] for name, service in SERVICES.items() if service["image"] == "millstream"}

    assert (sorted(set(SERVICES) - set(ours)), ours) == (["kafka", "store"], {verb: [verb] for verb in ("topics", "ingest", "serve")})


@pytest.mark.parametrize("name", SERVICES)
def test_no_port_is_published_beyond_this_machine(name: str) -> None:
    """Every published port names the loopback address: Kafka and the store ask nobody for a password."""
    assert [port for port in SERVICES[name].get("ports", []) if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_runs_as_root(name: str) -> None:
    """Every service names a user, and it is not root."""
    assert str(SERVICES[name].get("user", "")).lower() not in ROOT


@pytest.mark.parametrize("name", SERVICES)
def test_what_runs_on_is_restarted_and_what_ends_is_not(name: str) -> None:
    """Every service states its restart policy; only the one-shot `topics` is not started again."""
    assert SERVICES[name]["restart"] == ("no" if name == "topics" else "unless-stopped")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_others_wait_for_can_tell_when_it_is_ready(name: str) -> None:
    """`service_healthy` is asked only of services with a health check, `service_completed_successfully` only of one that ends."""
    conditions = {needed: rule["condition"] for needed, rule in SERVICES[name].get("depends_on", {}).items()}
    right = {
        needed: "service_healthy" if "test" in SERVICES[needed].get("healthcheck", {}) else "service_completed_successfully"
        for needed in conditions
    }

    assert conditions == right


def test_the_workers_wait_for_the_store_and_the_topics() -> None:
    """Neither `ingest` nor `serve` starts before the store answers and the topics exist, and the topics wait for Kafka."""
    waits = {name: sorted(SERVICES[name]["depends_on"]) for name in ("ingest", "serve", "topics")}

    assert waits == {"ingest": ["store", "topics"], "serve": ["store", "topics"], "topics": ["kafka"]}


def test_every_volume_is_named_and_used() -> None:
    """What outlives a container lies in a declared volume, and no volume is declared in vain."""
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}

    assert used == set(COMPOSE["volumes"])


def test_the_broker_has_the_settings_of_the_local_stack() -> None:
    """What is right on `millstream stack up` is right in a container: BROKER_SETTINGS, all of them, with their values."""
    environment = SERVICES["kafka"]["environment"]

    assert {name: environment.get(environment_name(name)) for name in BROKER_SETTINGS} == BROKER_SETTINGS


def test_every_variable_is_a_setting() -> None:
    """Each MILLSTREAM_ variable of the compose file and the image is one that `millstream` reads."""
    known = {f"MILLSTREAM_{setting.name.upper()}" for setting in fields(Settings)}
    given = {*set_in_the_image(), *(name for service in SERVICES.values() for name in service.get("environment", {}))}

    assert {name for name in given if name.startswith("MILLSTREAM_")} - known == set()


def test_the_compose_file_and_the_image_agree() -> None:
    """A variable that both set has one value: the image's volume and health check rest on it."""
    image, service = set_in_the_image(), SERVICES["serve"]["environment"]

    assert {name: service[name] for name in image if name in service} == {name: image[name] for name in image if name in service}


def test_the_dockerfile_uses_known_instructions() -> None:
    """Every line begins with an instruction of the format, in capitals."""
    assert {name for name, _ in instructions()} - INSTRUCTIONS == set()


def test_the_image_runs_as_an_ordinary_user() -> None:
    """The kept stage ends with a USER that is not root before it names its program."""
    names = [name for name, _ in last_stage()]
    user = [rest for name, rest in last_stage() if name == "USER"]

    assert (user[-1:] not in ([name] for name in ROOT), names.index("USER") < names.index("ENTRYPOINT")) == (True, True)


def test_everything_copied_is_there() -> None:
    """Each source of a COPY from the build context exists under the repository root."""
    copies = [rest.split() for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]

    assert [source for *sources, _ in copies for source in sources if not (REPOSITORY / source).exists()] == []


def test_every_package_is_copied() -> None:
    """A folder that pyproject.toml lists as a package is in the image."""
    packages = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    copied = {source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]}

    assert {package.split(".")[0] for package in packages} - copied == set()


def test_nothing_is_installed_without_its_hash() -> None:
    """Every install from an index asks for hashes, takes no cache along, and every other one may not look at an index."""
    steps = [
        step for name, rest in instructions() if name == "RUN" for step in rest.split("&&") if "pip install" in step or "pip wheel" in step
    ]

    assert [("--no-cache" in step, "--require-hashes" in step or "--no-index" in step) for step in steps] == [(True, True)] * len(steps)


def test_the_health_check_passes_while_metrics_are_served() -> None:
    """The image's own command succeeds against a program that answers /metrics on MILLSTREAM_METRICS_PORT."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever).start()
        code = probe(server.server_address[1])
        server.shutdown()

    assert code == 0


def test_the_health_check_fails_when_nobody_answers() -> None:
    """The image's own command fails where nothing listens."""
    assert probe(free_port()) == 1
