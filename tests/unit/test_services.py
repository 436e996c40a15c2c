"""What tests of servers lean on."""

from tests.services import free_port


def test_no_port_is_given_twice() -> None:
    """A test asks for its servers' ports before any of them listens, and the system gives a port again at once."""
    ports = [free_port() for _ in range(500)]

    assert len(set(ports)) == len(ports)
