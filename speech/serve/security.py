"""Who may connect, and what clients may cost."""

import asyncio
import hmac
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from speech.errors import ConfigError

TOKEN_PREFIX = "token."
"""A page can't set headers of its WebSocket, so it offers the token as a subprotocol with this prefix."""
RESOLVE_S = 60.0
"""Time after which the addresses of allowed names are looked up again."""
NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", re.IGNORECASE)
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Limits:
    """What one client and all clients together may cost."""

    max_clients: int = 32
    """Most clients at once."""
    max_message_bytes: int = 1 << 18
    """Largest size of one message; 2.7 s of audio at 48 kHz."""
    handshake_s: float = 5.0
    """Longest time for the handshake of a client."""
    idle_s: float = 60.0
    """Time without audio after which a client is dropped."""
    send_s: float = 5.0
    """Longest time for a client to receive an event; a slower client is dropped."""

    @property
    def max_connections(self) -> int:
        """Most connections at once, including those without a finished handshake."""
        return 3 * self.max_clients


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    ip = address_of(host)
    return host == "localhost" or (ip is not None and ip.is_loopback)


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address without a scope, as IPv4 if it is mapped; None for a name, which DNS may redirect."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


class Machines:
    """Other machines: addresses, networks, and names whose addresses are looked up again each minute.

    Args:
        texts: such as 192.168.1.7, 192.168.1.0/24 or homeassistant.local.
        option: the option that names them, for messages.
    Raises:
        ConfigError: a text that is neither.
    """

    def __init__(self, texts: Iterable[str], option: str = "--allow") -> None:
        self._networks: list[Network] = []
        self._found: dict[str, frozenset[str]] = {}
        for text in texts:
            try:
                self._networks.append(ipaddress.ip_network(text))
            except ValueError as error:
                if not NAME.fullmatch(text) or not re.search("[a-z]", text.rpartition(".")[2] or text, re.IGNORECASE):
                    raise ConfigError(
                        f"{option} expects a name or an address such as 192.168.1.7 or 192.168.1.0/24: {error}"
                    ) from error
                self._found[text] = frozenset()

    def __bool__(self) -> bool:
        return bool(self._networks or self._found)

    def __contains__(self, address: str) -> bool:
        ip = address_of(address)
        is_near = ip is not None and any(ip in network for network in self._networks)
        return is_near or any(str(ip) in addresses for addresses in self._found.values())

    async def look_up(self, tell: Callable[[str], None]) -> None:
        """Look up the names; a name that is not found keeps the addresses that it had."""
        for name in self._found:
            try:
                found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
                self._found[name] = frozenset(str(address_of(str(address[4][0]))) for address in found)
            except (OSError, UnicodeError) as error:
                if not self._found[name]:
                    tell(f"note: {name} is not found ({error}); it is looked up again each minute")

    async def keep_looking_up(self, tell: Callable[[str], None]) -> NoReturn:
        while True:
            await asyncio.sleep(RESOLVE_S)
            await self.look_up(tell)


@dataclass(frozen=True)
class Access:
    """Which requests the page's server answers.

    A browser sends the address of the page as `Origin`, and the requested host name as `Host`.  A page from elsewhere
    has another origin (cross-site WebSocket hijacking), or a host name that resolves to this machine (DNS rebinding).
    """

    host: str
    """The address that the server is bound to."""
    port: int
    token: str | None = None
    """Token that a client must send; None, where only this machine can connect, if it needs none."""
    is_tls: bool = False
    names: tuple[str, ...] = ()
    """Further names of this server, *.example.org for all of a domain; the first may have a port."""
    base_path: str = ""
    """What a proxy puts before the paths, such as /speech."""
    proxies: Machines = Machines(())  # noqa: RUF009 - holds no names, so it never changes
    """Machines whose X-Forwarded-Host and X-Forwarded-Proto are believed."""

    @property
    def url(self) -> str:
        """Address to open in a browser, which never sends the fragment with the token."""
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        place = f"[{name}]:{self.port}" if ":" in name else f"{name}:{self.port}"
        named = next((name for name in self.names if not name.startswith("*") and address_of(name) is None), "")
        if named:
            place = named if self.proxies or ":" in named else f"{named}:{self.port}"
        scheme = "https" if self.is_tls or (named and self.proxies) else "http"
        return f"{scheme}://{place}{self.base_path}/" + (f"#{self.token}" if self.token else "")

    def asked(self, peer: str, header: Callable[[str], Sequence[str]]) -> tuple[str, str]:
        """Scheme and host that the browser asked for; "" for the host unless there is exactly one.

        Args:
            peer: address of the client.
            header: a header's name -> its values.
        """
        hosts, scheme = header("Host"), "https" if self.is_tls else "http"
        if peer in self.proxies:
            hosts = header("X-Forwarded-Host") or hosts
            scheme = (header("X-Forwarded-Proto") or [scheme])[-1].strip().lower()
        return scheme, hosts[0].strip().lower() if len(hosts) == 1 else ""

    def knows(self, host: str) -> bool:
        """Whether a `Host` header names this server, whatever the port: it may be mapped to another one."""
        name = host_name(host)
        if not name:
            return False
        if is_loopback(name) or name == self.host or any(_is_called(name, host_name(one)) for one in self.names):
            return True
        machine = socket.gethostname().lower()
        is_here = address_of(name) or name == machine or name.startswith(f"{machine}.")
        return not is_loopback(self.host) and bool(is_here)

    def accepts(self, shown: Sequence[str]) -> bool:
        """Whether one of the tokens that a client sends is right; compared in constant time."""
        if self.token is None:
            return True
        return any(hmac.compare_digest(token.encode(), self.token.encode()) for token in shown)


def host_name(host: str) -> str:
    """Name without port, in lower case and without brackets; "" for anything but `name` or `name:port`."""
    try:
        url = urlsplit(f"//{host}")
        _ = url.port  # raises if it is not a number
    except ValueError:
        return ""
    return (url.hostname or "") if url.netloc == host and "@" not in host else ""


def _is_called(name: str, known: str) -> bool:
    """Whether a name is the known one; *.example.org covers names with one more part."""
    return name == known or (known.startswith("*.") and name.partition(".")[2] == known[2:])


def names_of(certificate: Path) -> tuple[str, ...]:
    """The names and addresses that a certificate is for."""
    decoded: Mapping[str, Sequence[tuple[str, str]]] = ssl._ssl._test_decode_cert(certificate)  # type: ignore[attr-defined]
    return tuple(name for kind, name in decoded.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))
