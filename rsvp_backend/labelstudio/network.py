"""Connections that keep a deadline and refuse non-public addresses at the moment of connecting (no DNS rebinding)."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import httpcore

from rsvp_backend.errors import ImageError
from rsvp_backend.labelstudio.hosts import HostRule
from rsvp_backend.types import Deadline

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_DOCUMENTATION = ipaddress.IPv6Network("3fff::/20")


def is_public(address: str) -> bool:
    """Whether an IP address is reachable over the internet, IPv4 addresses inside of IPv6 ones included."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is None and (ip not in _GLOBAL_UNICAST or ip in _DOCUMENTATION):
            return False
        ip = inner or ip
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


@dataclass(frozen=True, slots=True)
class Reach:
    """Which hosts may be connected to. ``trusted``: (host, port) pairs of Label Studio's own, on whatever address.

    Of the others only ``hosts`` where these are given, and none on a private address unless ``allow_private``.
    """

    trusted: frozenset[tuple[str, int]] = frozenset()
    hosts: tuple[HostRule, ...] | None = None
    allow_private: bool = False

    def check_name(self, host: str, port: int) -> None:
        """Raises `ImageError`."""
        if self.hosts is None or (host, port) in self.trusted or any(rule.allows(host, port) for rule in self.hosts):
            return
        raise ImageError(f"host {host!r}, port {port}, is not one that images may come from: see RSVP_IMAGE_HOSTS")

    def check_addresses(self, host: str, port: int, addresses: Iterable[str]) -> None:
        """Raises `ImageError`."""
        if self.allow_private or (host, port) in self.trusted:
            return
        refused = next((address for address in addresses if not is_public(address)), None)
        if refused is not None:
            raise ImageError(
                f"host {host!r} has the private or local address {refused}: refused. Only Label Studio's own "
                "host (RSVP_LABEL_STUDIO_URL) may be private; RSVP_ALLOW_PRIVATE_ADDRESSES=true allows others"
            )


class GuardedBackend(httpcore.NetworkBackend):
    """Opens TCP connections for httpcore, within ``reach``.

    The address that was checked is the one that is connected to. Raises `ImageError` for refused ones.
    """

    def __init__(self, deadline: Deadline, reach: Reach) -> None:
        self._deadline = deadline
        self._reach = reach
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        self._reach.check_name(host, port)
        addresses = _resolved(host, port, self._deadline)
        self._reach.check_addresses(host, port, addresses)
        error: Exception = httpcore.ConnectError(f"host {host!r} has no address")
        for address in addresses:
            try:
                stream = self._backend.connect_tcp(
                    address, port, _left(self._deadline), local_address=local_address, socket_options=socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as caught:
                error = caught
            else:
                return _TimedStream(stream, self._deadline)
        raise error


class _TimedStream(httpcore.NetworkStream):
    """Gives every read and write only the time that is left, so that a slow drip cannot outlive the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: Deadline) -> float:
    if deadline.expired:
        raise httpcore.ReadTimeout("the time for this image is over")
    return deadline.remaining_s


def _resolved(host: str, port: int, deadline: Deadline) -> list[str]:
    """The host's addresses. Whoever answers for a name may take his time, but not more than there is."""
    answer: SimpleQueue[list[str] | ImageError] = SimpleQueue()
    threading.Thread(target=lambda: answer.put(_look_up(host, port)), name="resolve", daemon=True).start()
    try:
        found = answer.get(timeout=_left(deadline))
    except Empty:
        raise httpcore.ConnectTimeout(f"host {host!r} was not resolved in time") from None
    if isinstance(found, ImageError):
        raise found
    return found


def _look_up(host: str, port: int) -> list[str] | ImageError:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError, OverflowError) as error:  # the latter two: no name, no port
        return ImageError(f"host {host!r} cannot be resolved: {error}")
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
