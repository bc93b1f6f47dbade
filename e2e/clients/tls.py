"""TLS that is the application's own.

`tls.py serve PORT NAME CERTIFICATE KEY` answers each line with NAME and the server name that the client asked for.
`tls.py ask HOST PORT SERVER_NAME...` prints for each server name what answered; `-` asks for none, `plain` speaks no TLS.
"""

import socket
import ssl
import sys
import threading


def serve(port, name, certificate, key):
    asked = threading.local()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def note(_, server_name, __):
        asked.name = server_name

    context.sni_callback = note
    listener = socket.create_server(("", port))

    def answer(connection):
        try:
            # What is not TLS gets an answer too.
            if connection.recv(1, socket.MSG_PEEK) != b"\x16":
                connection.recv(100)
                connection.sendall(f"{name} plain\n".encode())
                return
            with context.wrap_socket(connection, server_side=True) as stream:
                stream.recv(100)
                stream.sendall(f"{name} {asked.name}\n".encode())
        except OSError:
            pass
        finally:
            connection.close()

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def ask(host, port, server_name):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout=10) as stream:
            if server_name != "plain":
                stream = context.wrap_socket(stream, server_hostname=None if server_name == "-" else server_name)
            with stream:
                stream.sendall(b"hello\n")
                return stream.recv(100).decode().strip() or "closed"
    except OSError:
        return "refused"


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), *sys.argv[3:])
    for server_name in sys.argv[4:]:
        print(server_name, ask(sys.argv[2], int(sys.argv[3]), server_name), sep=": ", flush=True)
