"""Datagrams: a server that says its name, and clients that look closely at where the replies come from.

serve PORT NAME          answers each datagram with NAME and the datagram
ask HOST PORT COUNT      COUNT sessions of two datagrams each; prints who answered how many sessions
keep HOST PORT           one session for ever; prints who answers whenever that changes
"""

import collections
import socket
import sys
import time


def serve(port, name):
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", port))
    while True:
        data, peer = server.recvfrom(65536)
        server.sendto(name.encode() + b" " + data, peer)


def exchange(client, address, text):
    """The server's name, or what went wrong."""
    client.sendto(text.encode(), address)
    try:
        data, peer = client.recvfrom(65536)
    except TimeoutError:
        return "nobody"
    except OSError as error:
        return type(error).__name__
    if peer[:2] != address[:2]:
        return f"a stranger at {peer[0]}:{peer[1]}"
    name, _, rest = data.decode().partition(" ")
    return name if rest == text else f"garbled {rest!r}"


def open_client(host, port):
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    client = socket.socket(family, kind)
    client.settimeout(2)
    return client, address


def ask(host, port, count):
    answers = collections.Counter()
    sessions = []
    for number in range(count):
        client, address = open_client(host, port)
        sessions.append((client, address, exchange(client, address, f"first {number}")))
    for number, (client, address, first) in enumerate(sessions):
        second = exchange(client, address, f"second {number}") if first != "nobody" else first
        answers[first if first == second else f"{first} then {second}"] += 1
    for name, sessions in sorted(answers.items()):
        print(f"{name}: {sessions}")


def keep(host, port):
    client, address = open_client(host, port)
    before, number = None, 0
    while True:
        number += 1
        now = exchange(client, address, str(number))
        if now != before:
            print(now, flush=True)
        before = now
        time.sleep(0.05)


match sys.argv[1:]:
    case ["serve", port, name]:
        serve(int(port), name)
    case ["ask", host, port, count]:
        ask(host, int(port), int(count))
    case ["keep", host, port]:
        keep(host, int(port))
    case _:
        sys.exit(__doc__)
