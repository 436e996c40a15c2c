"""Where a store is and how to get in: what its URL says, and the files of TLS.

    redis://host[:port][/database]                          one server
    redis+sentinel://host[:port][,..]/service[/database]    the primary that sentinels name, now and after a failover
    redis+cluster://host[:port][,..]                        a cluster; these of its nodes are asked for the others

Each with `rediss` for TLS, and with `user:password@` before the hosts for an ACL user (sentinels themselves are asked without one).
"""

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from schemas.errors import SettingsError

PORTS = {"": 6379, "cluster": 6379, "sentinel": 26379}
SCHEME = re.compile(r"redis(s?)(?:\+(cluster|sentinel))?")
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+)(?::(\d{1,5}))?")
URLS = (
    "a URL like redis://localhost:6379, rediss://user:password@host:6380/0, redis+cluster://host:6379,host:6380 "
    "or redis+sentinel://host:26379,host:26380/service/0"
)


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """As URLs have it."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """What a store URL says. kind: "" for one server, else "cluster" or "sentinel"; service: the name that sentinels know."""

    kind: str
    tls: bool
    addresses: tuple[Address, ...]
    service: str
    database: int
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM. ca_file: who signed the servers' certificates, else the system's authorities; cert_file, key_file: who we are."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Raises SettingsError for files that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as error:
            files = f"store_tls_ca_file {self.ca_file}, store_tls_cert_file {self.cert_file}, store_tls_key_file {self.key_file}"
            raise SettingsError(f"{files}: {error}. Each is a PEM file that we may read; the key belongs to the certificate.") from error
        return context


def parse_url(url: str) -> Target:
    """What a URL says. Raises ValueError with what would be right."""
    parts = urlsplit(url)
    scheme = SCHEME.fullmatch(parts.scheme)
    if scheme is None or parts.query or parts.fragment:
        raise ValueError(URLS)
    kind = scheme[2] or ""
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = map(unquote, login.partition(":"))
    path = [part for part in parts.path.split("/") if part]
    service = path.pop(0) if kind == "sentinel" and path else ""
    database = path.pop(0) if path else "0"
    if path or not database.isdigit() or (kind == "cluster" and database != "0") or (kind == "sentinel" and not service):
        raise ValueError(URLS)
    addresses = tuple(_address(host, PORTS[kind]) for host in hosts.split(","))
    if not kind and len(addresses) > 1:
        raise ValueError(URLS)
    return Target(kind, bool(scheme[1]), addresses, service, int(database), username, password)


def _address(host: str, port: int) -> Address:
    found = HOST.fullmatch(host)
    if found is None or int(found[2] or port) > 65535:
        raise ValueError(URLS)
    return Address(found[1].strip("[]"), int(found[2] or port))


def without_password(url: str) -> str:
    """A URL as it may be shown: what stands before its hosts is nobody's business."""
    login, at, hosts = url.rpartition("@")
    return f"{login.partition('//')[0]}//***@{hosts}" if at else url
