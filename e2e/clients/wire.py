"""Both ends of what is more than a request and a reply, on plain sockets so that every byte is this file's own.

`wire.py serve PORT` serves; `wire.py SCENE...` plays scenes against http://wire:9080 and fails on the first that is not as it should be.
"""

import base64
import hashlib
import os
import socket
import struct
import sys
import threading
import time

PORT = 9080
EVENTS = 20
INTERVAL = 0.1


class Connection:
    def __init__(self, sock):
        self.sock = sock
        self.file = sock.makefile("rb")

    def send(self, text):
        self.sock.sendall(text if isinstance(text, bytes) else text.encode())

    def head(self):
        """First line and headers, or None at the end."""
        first = self.file.readline()
        return (first.decode().strip(), self.headers()) if first else None

    def headers(self):
        found = {}
        for line in iter(self.file.readline, b"\r\n"):
            assert line, "the connection ended in the middle of headers"
            name, _, value = line.decode().partition(":")
            found[name.lower()] = value.strip()
        return found

    def chunks(self):
        """Chunks as they come; the trailers are in `trailers` afterwards."""
        while size := int(self.file.readline(), 16):
            data = self.file.read(size)
            assert self.file.readline() == b"\r\n" and len(data) == size
            yield data
        self.trailers = self.headers()

    def body(self, headers):
        if "transfer-encoding" in headers:
            return b"".join(self.chunks())
        self.trailers = {}
        return self.file.read(int(headers.get("content-length", 0)))

    def frame(self):
        """One WebSocket frame: opcode and payload."""
        first, second = self.file.read(2)
        length = second & 127
        if length == 126:
            (length,) = struct.unpack("!H", self.file.read(2))
        mask = self.file.read(4) if second & 128 else bytes(4)
        return first & 15, bytes(b ^ mask[i % 4] for i, b in enumerate(self.file.read(length)))

    def send_frame(self, opcode, payload, masked):
        mask = os.urandom(4) if masked else b""
        length = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + struct.pack("!H", len(payload))
        if masked:
            length = bytes([length[0] | 128]) + length[1:]
            payload = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        self.send(bytes([128 | opcode]) + length + mask + payload)


def accept_key(key):
    return base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()


# --- the server


def serve(port):
    listener = socket.create_server(("", port), backlog=64)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve_one, args=(Connection(sock),), daemon=True).start()


def serve_one(connection):
    try:
        while head := connection.head():
            # In one write, because other threads write lines too.
            os.write(1, f"{head[0]} {head[1].get('host')}\n".encode())
            if not answer(connection, head[0].split(" "), head[1]):
                break
    finally:
        connection.file.close()
        connection.sock.close()


def answer(connection, line, headers):
    """Gives whether the connection can serve another request."""
    method, path = line[0], line[1]
    if method == "CONNECT":
        connection.send("HTTP/1.1 200 OK\r\n\r\n")
        while data := connection.file.read1(65536):
            connection.send(data)
        connection.send("goodbye")
        return False
    if headers.get("upgrade", "").lower() == "websocket":
        key = accept_key(headers["sec-websocket-key"])
        connection.send(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {key}\r\n\r\n"
        )
        while True:
            opcode, payload = connection.frame()
            connection.send_frame(opcode, payload, masked=False)
            if opcode == 8:
                return False
    if path == "/refuse":
        connection.send("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        return False
    if headers.get("expect") == "100-continue":
        connection.send("HTTP/1.1 100 Continue\r\n\r\n")
    body = connection.body(headers)
    if path == "/events":
        connection.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(EVENTS):
            event = f"data: {i}\n\n"
            connection.send(f"{len(event):x}\r\n{event}\r\n")
            time.sleep(INTERVAL)
        connection.send("0\r\n\r\n")
    elif path == "/trailers":
        total = connection.trailers.get("x-total", "none")
        connection.send(
            "HTTP/1.1 200 OK\r\nTrailer: x-seen\r\nTransfer-Encoding: chunked\r\n\r\n"
            f"4\r\ndone\r\n0\r\nx-seen: {len(body)} {total}\r\n\r\n"
        )
    else:
        reply = f"{len(body)} bytes"
        connection.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(reply)}\r\n\r\n{reply}")
    return True


# --- the scenes


def open_connection():
    return Connection(socket.create_connection(("wire", PORT), timeout=10))


def request(connection, line, *headers):
    connection.send("".join(part + "\r\n" for part in (f"{line} HTTP/1.1", f"Host: wire:{PORT}", *headers)) + "\r\n")


def same(got, want):
    assert got == want, f"got {got!r}, not {want!r}"


def websocket():
    connection = open_connection()
    key = base64.b64encode(os.urandom(16)).decode()
    request(
        connection, "GET /chat", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"
    )
    first, headers = connection.head()
    assert first.startswith("HTTP/1.1 101"), first
    same(headers["upgrade"].lower(), "websocket")
    same(headers["sec-websocket-accept"], accept_key(key))
    for payload in (b"hello", os.urandom(40_000), b""):
        connection.send_frame(2, payload, masked=True)
        same(connection.frame(), (2, payload))
    connection.send_frame(8, struct.pack("!H", 1000), masked=True)
    same(connection.frame(), (8, struct.pack("!H", 1000)))
    same(connection.file.read(), b"")


def connect():
    connection = open_connection()
    connection.send(f"CONNECT wire:{PORT} HTTP/1.1\r\nHost: wire:{PORT}\r\n\r\n")
    first, _ = connection.head()
    assert first.startswith("HTTP/1.1 200"), first
    for data in (b"hello", os.urandom(100_000)):
        threading.Thread(target=connection.send, args=(data,)).start()
        same(connection.file.read(len(data)), data)
    # One half can end before the other.
    connection.sock.shutdown(socket.SHUT_WR)
    same(connection.file.read(), b"goodbye")


def continued():
    connection = open_connection()
    request(connection, "POST /upload", "Content-Length: 5", "Expect: 100-continue")
    first, _ = connection.head()
    assert first.startswith("HTTP/1.1 100"), first
    connection.send("12345")
    first, headers = connection.head()
    assert first.startswith("HTTP/1.1 200"), first
    same(connection.body(headers), b"5 bytes")
    # A server that does not want the body says so before it was sent.
    connection = open_connection()
    request(connection, "POST /refuse", "Content-Length: 5", "Expect: 100-continue")
    first, _ = connection.head()
    assert first.startswith("HTTP/1.1 413"), first


def trailers():
    connection = open_connection()
    request(connection, "POST /trailers", "TE: trailers", "Trailer: x-total", "Transfer-Encoding: chunked")
    connection.send("3\r\nabc\r\n4\r\ndefg\r\n0\r\nx-total: seven\r\n\r\n")
    first, headers = connection.head()
    assert first.startswith("HTTP/1.1 200"), first
    same(connection.body(headers), b"done")
    same(connection.trailers.get("x-seen"), "7 seven")


def events():
    """Each event comes when it is sent, not when the stream ends or a buffer is full."""
    connection = open_connection()
    request(connection, "GET /events")
    first, headers = connection.head()
    assert first.startswith("HTTP/1.1 200") and headers["content-type"] == "text/event-stream", (first, headers)
    times = []
    for i, event in enumerate(connection.chunks()):
        same(event, f"data: {i}\n\n".encode())
        times.append(time.monotonic())
    same(len(times), EVENTS)
    assert times[-1] - times[0] > (EVENTS - 1) * INTERVAL * 0.7, f"they came together: {times}"


def main():
    scenes = {"websocket": websocket, "connect": connect, "continue": continued, "trailers": trailers, "events": events}
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    for name in sys.argv[1:]:
        print(name, flush=True)
        scenes[name]()
    print("as it should be")


main()
