"""Who may connect, and how much one client may cost."""

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from speech.errors import ConfigError

HTTP_PORT, HTTPS_PORT = 80, 443
TOKEN_BYTES = 16
TOKEN_PREFIX = "token."
"""A page can't set headers of its WebSocket, so it offers the token as a subprotocol with this prefix."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Limits:
    """What one client, and all of them together, may cost."""

    max_clients: int = 32
    """Clients at once."""
    max_connections: int = 96
    """Connections at once, those without a finished handshake included."""
    max_message_bytes: int = 1 << 18
    """Size of one message; 2.7 s of audio at 48 kHz."""
    handshake_s: float = 5.0
    """Time for a client to finish its handshake."""
    idle_s: float = 60.0
    """Time without audio after which a client is dropped."""
    send_s: float = 5.0
    """Time for a client to take an event; a slower one is dropped."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        if self.max_connections < self.max_clients:
            raise ConfigError(f"max_connections={self.max_connections} is less than max_clients={self.max_clients}")


def new_token() -> str:
    """A token that can't be guessed, safe in an URL."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Addresses and networks, such as 192.168.1.7 or 192.168.1.0/24.

    Raises:
        ConfigError: one that is none.
    """
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f"--allow expects an address such as 192.168.1.7 or 192.168.1.0/24: {error}") from error


def is_allowed(address: str, networks: Sequence[Network]) -> bool:
    """Whether a client's address is this machine's or lies in one of the networks."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return ip.is_loopback or any(ip in network for network in networks)


@dataclass(frozen=True)
class Access:
    """Which requests belong to the page of this server.

    A browser sends the page's own address as `Origin`, and the name it was asked for as `Host`.  A page from elsewhere
    has another origin (cross-site WebSocket hijacking), or a name that was pointed at this machine (DNS rebinding).
    """

    host: str
    """The address that the server is bound to."""
    port: int
    token: str | None = None
    """What a client must show; None: nothing, on loopback."""
    is_tls: bool = False

    @property
    def scheme(self) -> str:
        return "https" if self.is_tls else "http"

    @property
    def url(self) -> str:
        """What to open in a browser; the fragment with the token never leaves it."""
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        name = f"[{name}]" if ":" in name else name
        return f"{self.scheme}://{name}:{self.port}/" + (f"#{self.token}" if self.token else "")

    def knows(self, host_header: str) -> bool:
        """Whether the `Host` header names this server."""
        name, port = split_port(host_header, HTTPS_PORT if self.is_tls else HTTP_PORT)
        if port != self.port:
            return False
        if name == self.host or (is_loopback(self.host) and is_loopback(name)):
            return True
        machine = socket.gethostname().lower()
        return not is_loopback(self.host) and (is_address(name) or name in (machine, f"{machine}.local"))

    def is_same_origin(self, origin: str, host_header: str) -> bool:
        """Whether the page that asks came from this server."""
        return hmac.compare_digest(origin.lower().encode(), f"{self.scheme}://{host_header.lower()}".encode())

    def accepts(self, shown: Sequence[str]) -> bool:
        """Whether one of the tokens that a client shows is right; compared in constant time."""
        if self.token is None:
            return True
        return any(hmac.compare_digest(token.encode(), self.token.encode()) for token in shown)


def split_port(host_header: str, default: int) -> tuple[str, int]:
    """`name:port` -> name in lower case, port; -1 for a port that is no number."""
    text = host_header.strip().lower()
    name, separator, port = text.rpartition(":")
    if not separator or port.endswith("]"):
        name, port = text, str(default)
    return name.strip("[]"), int(port) if port.isascii() and port.isdigit() and len(port) < 6 else -1


def is_address(name: str) -> bool:
    """Whether a host is an IP address, which no name server can point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
