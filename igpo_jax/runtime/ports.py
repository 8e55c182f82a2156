"""Opens ports. This module does not import JAX, so that a command can check its port before slow imports."""

import socket

from igpo_jax.runtime.files import first_line


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that accepts connections at an address. The host "::" means all addresses of this machine. If another
    process uses the port, or if the host is not an address of this machine, raises an OSError whose text is the reason."""
    everywhere = host in ("", "::")
    dual = everywhere and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or (":" in host and not everywhere) else socket.AF_INET
    try:
        return socket.create_server(("" if everywhere else host, port), family=family, dualstack_ipv6=dual)
    except (OSError, TypeError, ValueError) as error:  # the last two: not a host name
        reason = getattr(error, "strerror", None) or first_line(error)
        raise OSError(reason.partition(" (while")[0]) from None
