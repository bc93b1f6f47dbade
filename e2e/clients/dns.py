"""Questions for IPv4 addresses over UDP, and a resolver with one answer.

`dns.py serve ADDRESS ANSWER` answers every question with the address ANSWER.
`dns.py ask RESOLVER NAME...` prints for each name the addresses, or the response code if there are none.
"""

import secrets
import socket
import struct
import sys


def question(name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return labels + b"\0" + struct.pack(">HH", 1, 1)


def serve(address, answer):
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((address, 53))
    print("serving", flush=True)
    while True:
        query, peer = listener.recvfrom(4096)
        asked = query[12 : query.index(b"\0", 12) + 5]
        head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
        record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(answer)
        listener.sendto(head + asked + record, peer)


def ask(resolver, name):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    number = secrets.token_bytes(2)
    asked = question(name)
    sock.sendto(number + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0) + asked, (resolver, 53))
    reply = sock.recv(4096)
    assert reply[:2] == number, "an answer to something else"
    flags, _, answers = struct.unpack(">HHH", reply[2:8])
    addresses, at = [], 12 + len(asked)
    for _ in range(answers):
        at = at + 2 if reply[at] & 0xC0 else reply.index(b"\0", at) + 1
        kind, _, _, length = struct.unpack(">HHIH", reply[at : at + 10])
        at += 10
        if kind == 1:
            addresses.append(socket.inet_ntoa(reply[at : at + length]))
        at += length
    return " ".join(addresses) or f"code {flags & 15}"


command, *arguments = sys.argv[1:]
if command == "serve":
    serve(*arguments)
else:
    for name in arguments[1:]:
        print(name, ask(arguments[0], name))
