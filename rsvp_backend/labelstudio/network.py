"""Connections that keep a deadline and refuse non-public addresses at the moment of connecting (no DNS rebinding)."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

from rsvp_backend.errors import ImageError
from rsvp_backend.types import Deadline

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is reachable over the internet, IPv4 addresses inside of IPv6 ones included."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class GuardedBackend(httpcore.NetworkBackend):
    """Opens TCP connections for httpcore. ``trusted``: (host, port) pairs that may lie on private addresses.

    The address that was checked is the one that is connected to. Raises `ImageError` for refused ones.
    """

    def __init__(self, deadline: Deadline, trusted: frozenset[tuple[str, int]], allow_private: bool) -> None:
        self._deadline = deadline
        self._trusted = trusted
        self._allow_private = allow_private
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _resolve(host, port)
        if not self._allow_private and (host, port) not in self._trusted:
            refused = [address for address in addresses if not is_public(address)]
            if refused:
                raise ImageError(
                    f"host {host!r} has the private or local address {refused[0]}: refused. Only Label Studio's own "
                    "host (RSVP_LABEL_STUDIO_URL) may be private; RSVP_ALLOW_PRIVATE_ADDRESSES=true allows others"
                )
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


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ImageError(f"host {host!r} cannot be resolved: {error}") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
