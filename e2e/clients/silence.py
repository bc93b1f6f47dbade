"""Asks for new and known names and addresses while the control plane says nothing, and prints how long each took, as JSON.

`silence.py FOLDER ADDRESS`: says `warm` when it has called the service `reviews` once, and goes on when FOLDER/stopped exists. Says its
times, and when FOLDER/continued exists calls the service `ratings`, until that answers. ADDRESS is one where nobody listens.
"""

import json
import os
import socket
import sys
import time
import urllib.request

FOLDER, ADDRESS = sys.argv[1:]


def wait_for(name):
    while not os.path.exists(os.path.join(FOLDER, name)):
        time.sleep(0.02)


def timed(what, *args):
    began = time.monotonic()
    try:
        what(*args)
    except OSError:
        pass  # that there is nobody is an answer too
    return time.monotonic() - began


def name(number):
    socket.getaddrinfo(f"host-{number}.example.", 80, socket.AF_INET, socket.SOCK_STREAM)


def address(port):
    with socket.create_connection((ADDRESS, port), 20) as connection:
        connection.recv(1)


def call(service):
    urllib.request.urlopen(f"http://{service}:9080/", timeout=5).read()


call("reviews")
print("warm", flush=True)
wait_for("stopped")
times = {"first": timed(name, 0)}
times["names"] = [timed(name, number) for number in range(1, 5)]
times["addresses"] = [timed(address, port) for port in range(7001, 7005)]
times["known"] = [timed(call, "reviews") for _ in range(4)]
print(json.dumps(times), flush=True)
wait_for("continued")
while True:
    try:
        call("ratings")
        break
    except OSError:
        time.sleep(0.1)
print(json.dumps({"new name": timed(name, 100), "new address": timed(address, 7100)}), flush=True)
