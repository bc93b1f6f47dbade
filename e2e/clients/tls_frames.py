"""Good TLS, and broken HTTP/2 inside: `tls_frames.py PORT`. A connection that cannot be made is an error."""

import random
import socket
import ssl
import sys

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


def frame(kind, flags, stream, payload, length=None):
    length = len(payload) if length is None else length
    return length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


noise = random.Random(7).randbytes
PAYLOADS = [
    b"",
    b"\0",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    noise(20_000),
    PREFACE,
    PREFACE + noise(4000),
    # The greatest length, a HEADERS frame on no stream, one that cannot be unpacked, DATA for a stream that was never opened,
    # a window that grows beyond all, a thousand pings and as many streams that are opened and reset.
    PREFACE + frame(4, 0, 0, noise(100), 0xFFFFFF),
    PREFACE + SETTINGS + frame(1, 4, 0, noise(4)),
    PREFACE + SETTINGS + frame(1, 5, 1, noise(200)),
    PREFACE + SETTINGS + frame(0, 1, 7, b"data"),
    PREFACE + SETTINGS + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 3,
    PREFACE + SETTINGS + frame(6, 0, 0, noise(8)) * 1000,
    PREFACE + SETTINGS + b"".join(frame(1, 5, i, b"\x82") + frame(3, 0, i, b"\0\0\0\x08") for i in range(1, 2001, 2)),
]

context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
for payload in PAYLOADS:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5) as plain, context.wrap_socket(plain) as stream:
        assert stream.selected_alpn_protocol() == "h2", stream.selected_alpn_protocol()
        stream.settimeout(0.05)
        try:
            stream.sendall(payload)
            stream.recv(4096)
        except OSError:
            # How it is answered is the server's own affair.
            pass
print(len(PAYLOADS))
