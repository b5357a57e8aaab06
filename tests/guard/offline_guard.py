"""Refuse every connection and every name look-up that would leave this machine.

An audit hook sees the call before the operating system does, whichever library makes it, and cannot be undone by later
patching. It sees Python's sockets only: compiled clients are kept offline by ``HF_HUB_OFFLINE``.
Source: PEP 578 and the standard library's table of audit events.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

_TO_ADDRESS = {"socket.connect", "socket.sendto", "socket.sendmsg"}  # arguments: socket, address
_OF_NAME = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}  # first argument: host
_installed = False


class NetworkRefused(ConnectionRefusedError):
    """A test or a lesson tried to leave this machine."""


def install() -> None:
    """Switch the guard on for the rest of this process; a second call does nothing."""
    global _installed
    if not _installed:
        sys.addaudithook(_refuse)
        _installed = True


def _refuse(event: str, args: tuple) -> None:
    if event in _TO_ADDRESS:
        address = args[1]  # a tuple for IP; a path for Unix sockets, None for a socket that is connected already
        if isinstance(address, tuple) and not _stays_here(address[0]):
            raise NetworkRefused(f"offline guard: a connection to {address[0]}:{address[1]} was refused; {_WAY_OUT}")
    elif event in _OF_NAME and not _stays_here(args[0]) and (event == "socket.gethostbyaddr" or _address(args[0]) is None):
        raise NetworkRefused(f"offline guard: looking up the name {_text(args[0])!r} was refused; {_WAY_OUT}")


_WAY_OUT = "tests and lessons at tiny scale use local files only (fetch data beforehand, or replace the call in the test)."


def _stays_here(host: object) -> bool:
    """Whether a host is this machine: no name, ``localhost``, its own name, a loopback or an unspecified address."""
    import socket  # imported here, so that the start of every Python process stays fast

    if not isinstance(host, (str, bytes)) or _text(host) in ("", "localhost", socket.gethostname()):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _address(host: str | bytes) -> IPv4Address | IPv6Address | None:
    """A host that is written as an address needs no look-up; None for a name."""
    import ipaddress

    try:
        return ipaddress.ip_address(_text(host))
    except ValueError:
        return None


def _text(host: str | bytes) -> str:
    return host.decode("utf-8", "replace") if isinstance(host, bytes) else host
