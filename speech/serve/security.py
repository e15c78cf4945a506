"""Who may connect, and what clients may cost."""

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
    """What one client and all clients together may cost."""

    max_clients: int = 32
    """Most clients at once."""
    max_connections: int = 96
    """Most connections at once, including those without a finished handshake."""
    max_message_bytes: int = 1 << 18
    """Largest size of one message; 2.7 s of audio at 48 kHz."""
    handshake_s: float = 5.0
    """Longest time for the handshake of a client."""
    idle_s: float = 60.0
    """Time without audio after which a client is dropped."""
    send_s: float = 5.0
    """Longest time for a client to receive an event; a slower client is dropped."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        if self.max_connections < self.max_clients:
            raise ConfigError(f"max_connections={self.max_connections} is less than max_clients={self.max_clients}")


def new_token() -> str:
    """A token that can't be guessed, safe in a URL."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Parse addresses and networks, such as 192.168.1.7 or 192.168.1.0/24.

    Raises:
        ConfigError: a text that is neither.
    """
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f"--allow expects an address such as 192.168.1.7 or 192.168.1.0/24: {error}") from error


def is_allowed(address: str, networks: Sequence[Network]) -> bool:
    """Whether a client's address is loopback or lies in one of the networks."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return ip.is_loopback or any(ip in network for network in networks)


@dataclass(frozen=True)
class Access:
    """Which requests the server answers.

    A browser sends the address of the page as `Origin`, and the requested host name as `Host`.  A page from elsewhere
    has another origin (cross-site WebSocket hijacking), or a host name that resolves to this machine (DNS rebinding).
    """

    host: str
    """The address that the server is bound to."""
    port: int
    token: str | None = None
    """Token that a client must send; None, for loopback, if it needs none."""
    is_tls: bool = False

    @property
    def scheme(self) -> str:
        return "https" if self.is_tls else "http"

    @property
    def url(self) -> str:
        """Address to open in a browser, which never sends the fragment with the token."""
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
        """Whether the page that sends the request came from this server."""
        return hmac.compare_digest(origin.lower().encode(), f"{self.scheme}://{host_header.lower()}".encode())

    def accepts(self, shown: Sequence[str]) -> bool:
        """Whether one of the tokens that a client sends is right; compared in constant time."""
        if self.token is None:
            return True
        return any(hmac.compare_digest(token.encode(), self.token.encode()) for token in shown)


def split_port(host_header: str, default: int) -> tuple[str, int]:
    """`name:port` -> name in lower case, port; port -1 if it is not a number."""
    text = host_header.strip().lower()
    name, separator, port = text.rpartition(":")
    if not separator or port.endswith("]"):
        name, port = text, str(default)
    return name.strip("[]"), int(port) if port.isascii() and port.isdigit() and len(port) < 6 else -1


def is_address(name: str) -> bool:
    """Whether a host is an IP address, which DNS can't redirect."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
