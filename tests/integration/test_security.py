"""TLS, SASL and ACL users against servers started with them: a broker on SASL_SSL, a Redis on a TLS port with a limited user."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs do not export them
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from compose import topics
from compose.settings import load
from compose.stack.kafka_jars import HOST, broker_answers, broker_command
from compose.stack.local import Server
from online_store.keys import Entity, Generation
from online_store.redis import RedisStore
from online_store.servers.address import Tls, parse_url
from online_store.view import describe
from ranker.kafka.sender import RankSettings
from replay.log import KafkaLog
from schemas.errors import LogError, StoreError
from schemas.features import REGISTRY
from schemas.topics import IMPRESSIONS
from streams.app import IngestSettings, check_topics
from tests import servers, workers
from tests.services import free_port
from tests.worlds import impression

#: What docs/operations.md tells operators to write: all that a worker needs of the store, and nothing else.
ACL = (
    "user millstream on >PASSWORD resetchannels -@all "
    "~*:features:* ~guard:* ~answer:* ~millstream:current ~millstream:generations "
    "+evalsha +script|load +exists +get +mget +set +setrange +hget +hset +hsetnx +hmget +hgetall +hvals +hdel +unlink +scan "
    "+select +role +cluster|slots +asking"
)
PASSWORD = "a p@ss:word/1,;="  # noqa: S105  # of servers that this test starts
YEAR = timedelta(days=365)


class Certificates(NamedTuple):
    """Files in PEM: an authority, another one that signed nothing, and what the authority signed for 127.0.0.1."""

    ca: Path
    stranger: Path
    certificate: Path
    key: Path


def signed(
    name: str, signer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate for 127.0.0.1; an authority's where nobody else signs it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, issuer_key = signer or (subject, key)
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - YEAR)
        .not_valid_after(now + YEAR)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST)), x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    return made, key


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Made anew for every run."""
    folder = tmp_path_factory.mktemp("certificates")
    found = Certificates(*(folder / f"{name}.pem" for name in Certificates._fields))
    ca, ca_key = signed("authority")
    own, key = signed("server", (ca.subject, ca_key))
    for path, certificate in ((found.ca, ca), (found.stranger, signed("stranger")[0]), (found.certificate, own)):
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    found.key.write_bytes(key.private_bytes(*form))
    return found


@pytest.fixture(scope="module")
def broker(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker's SASL_SSL listener; the user millstream may come with PLAIN and with SCRAM-SHA-512."""
    plain, secure, controller = free_port(), free_port(), free_port()
    server = Server("Kafka", tmp_path_factory.mktemp("kafka") / "server.properties", broker_answers)
    command = broker_command(server.settings, plain, controller)
    keystore = server.settings.with_name("keystore.pem")
    keystore.write_bytes(certificates.key.read_bytes() + certificates.certificate.read_bytes())
    login = "org.apache.kafka.common.security"
    lines = {
        "listeners": f"PLAINTEXT://{HOST}:{plain},SASL_SSL://{HOST}:{secure},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{plain},SASL_SSL://{HOST}:{secure}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keystore),
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f'{login}.plain.PlainLoginModule required user_millstream="{PASSWORD}";',
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
    }
    with server.settings.open("a") as settings:
        settings.writelines(f"{name}={value}\n" for name, value in lines.items())
    server.launch(command, plain)
    try:
        server.await_answer(plain)
        admin = AdminClient({"bootstrap.servers": f"{HOST}:{plain}"})
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        upsert = UserScramCredentialUpsertion("millstream", scram, PASSWORD.encode())
        for done in admin.alter_user_scram_credentials([upsert]).values():
            done.result(30)
        yield f"{HOST}:{secure}"
    finally:
        server.stop()


@pytest.fixture
def store_port(certificates: Certificates, tmp_path: Path) -> Iterator[int]:
    """The TLS port of a Redis 7.0 that lets nobody in but the user millstream, limited to what a worker needs."""
    folder, port = tmp_path / "redis", free_port()
    folder.mkdir()
    acl = folder / "users.acl"
    acl.write_text(f"user default off\n{ACL.replace('PASSWORD', 'secret')}\n")
    files = {"--tls-cert-file": certificates.certificate, "--tls-key-file": certificates.key, "--tls-ca-cert-file": certificates.ca}
    options = [word for name, path in files.items() for word in (name, str(path))]
    options += ["--tls-port", str(port), "--tls-auth-clients", "no", "--aclfile", str(acl)]
    with servers.single(servers.redis_7_0(), folder, *options):
        yield port


def chosen(certificates: Certificates, broker: str, store_port: int, **others: str) -> dict[str, str]:
    """The settings of a worker."""
    return {
        "kafka_bootstrap": broker,
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_mechanism": "PLAIN",
        "kafka_sasl_username": "millstream",
        "kafka_sasl_password": PASSWORD,
        "kafka_tls_ca_file": str(certificates.ca),
        "store_url": f"rediss://millstream:secret@{HOST}:{store_port}",
        "store_tls_ca_file": str(certificates.ca),
        **others,
    }


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_events_are_counted_over_tls_with_users(
    certificates: Certificates, broker: str, store_port: int, topic_prefix: str, tmp_path: Path, mechanism: str
) -> None:
    """The command, with settings as an operator gives them: topics made, events in, counts out, a clean stop, no password in the log."""
    words = chosen(certificates, broker, store_port, kafka_sasl_mechanism=mechanism, topic_prefix=topic_prefix)
    settings = load(words, {}, tmp_path / "none")
    topics.create(broker, topic_prefix, 1, security=settings.kafka_security)
    now_ms = time.time_ns() // 1_000_000
    events = [impression(item_id=topic_prefix, request_id=f"r{number}", ts_ms=now_ms) for number in range(100)]
    workers.produce(broker, topic_prefix, events, **settings.kafka_security)
    store = RedisStore(settings.store_url, REGISTRY, tls=settings.store_tls)

    async def impressions() -> int:
        found = await describe(store, REGISTRY, Entity("", "item", topic_prefix), now_ms)
        return int(found["windows"]["1h"]["impressions"])

    await store.begin(Generation(1, REGISTRY.fingerprint))
    with workers.command(tmp_path, "ingest", **words) as worker:
        async with asyncio.timeout(workers.PATIENCE_S):
            while await impressions() < len(events):
                assert worker.alive, worker.log
                await asyncio.sleep(0.05)
        code = worker.stop()

    ends = KafkaLog(broker, topic_prefix, settings.kafka_security).end_offsets(IMPRESSIONS)
    told = (code, await impressions(), sum(ends.values()), PASSWORD in worker.log, "secret" in worker.log)
    await store.close()
    assert told == (0, 100, 100, False, False), worker.log


def test_the_acl_line_grants_nothing_else(certificates: Certificates, store_port: int) -> None:
    """Other keys and other commands are refused."""
    login: Any = {"username": "millstream", "password": "secret", "ssl": True, "ssl_ca_certs": str(certificates.ca)}
    with redis.Redis(host=HOST, port=store_port, protocol=2, **login) as client:
        for command in (("FLUSHALL",), ("GET", "session:1"), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("DEL", "millstream:current")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


@pytest.mark.parametrize(
    ("url", "ca", "advice"),
    [
        ("rediss://millstream:wrong@{}", "ca", "WRONGPASS .* Mend user, password or database in store_url"),
        ("rediss://{}", "ca", "NOAUTH .* Put user and password into store_url"),
        ("rediss://millstream:secret@{}", "stranger", "store_tls_ca_file must be the CA that signed its certificate"),
        ("rediss://millstream:secret@{}", None, "store_tls_ca_file must be the CA that signed its certificate"),
    ],
)
async def test_a_store_that_does_not_let_us_in_says_what_to_mend(
    certificates: Certificates, store_port: int, url: str, ca: str | None, advice: str
) -> None:
    """It is not 'away': nobody waits for what does not pass."""
    tls = Tls(getattr(certificates, ca) if ca else None)
    store = RedisStore(url.format(f"{HOST}:{store_port}"), REGISTRY, tls=tls)

    with pytest.raises(StoreError, match=advice) as caught:
        await store.current()

    await store.close()
    assert (type(caught.value), "secret" in str(caught.value)) == (StoreError, False)


WRONG_KAFKA = {
    "Mend kafka_sasl_username, kafka_sasl_password": {"kafka_sasl_password": "wrong"},
    "kafka_tls_ca_file must be the CA": {"kafka_tls_ca_file": "stranger"},
    "kafka_security_protocol what it speaks": {"kafka_security_protocol": "PLAINTEXT"},
}


@pytest.mark.parametrize("advice", WRONG_KAFKA)
def test_a_kafka_that_does_not_let_us_in_says_what_to_mend(
    certificates: Certificates, broker: str, store_port: int, tmp_path: Path, advice: str
) -> None:
    """The client's own words, and the setting."""
    others = WRONG_KAFKA[advice]
    if "kafka_tls_ca_file" in others:
        others = {"kafka_tls_ca_file": str(certificates.stranger)}
    settings = load(chosen(certificates, broker, store_port, **others), {}, tmp_path / "none")

    with pytest.raises(LogError, match=advice) as caught:
        check_topics(IngestSettings(broker, "g", security=settings.kafka_security))

    assert PASSWORD not in str(caught.value)


def test_passwords_stand_in_no_repr(certificates: Certificates, tmp_path: Path) -> None:
    """Of settings, as a crash would print them."""
    settings = load(chosen(certificates, "localhost:1", 1), {}, tmp_path / "none")
    shown = [repr(settings), repr(IngestSettings("b", "g", security=settings.kafka_security)), repr(parse_url(settings.store_url))]
    shown.append(repr(RankSettings("b", "g", security=settings.kafka_security)))

    assert [text for text in shown if PASSWORD in text or "secret" in text] == []
