"""A gRPC server that says its version, and a client that finds it by xDS.

    xds_client.py server PORT VERSION
    xds_client.py client TARGET              for each line of standard input `CALLS`, prints JSON: calls by version and by error
"""
import collections
import json
import sys
from concurrent import futures

import grpc

METHOD = "/e2e.Version/Get"
SAME = {"request_serializer": lambda data: data, "response_deserializer": lambda data: data}


def server(port, version):
    class Handler(grpc.GenericRpcHandler):
        def service(self, call):
            if call.method == METHOD:
                return grpc.unary_unary_rpc_method_handler(lambda request, context: version.encode())

    instance = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Handler()])
    instance.add_insecure_port(f"127.0.0.1:{port}")
    instance.start()
    print("serving", flush=True)
    instance.wait_for_termination()


def client(target):
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(METHOD, **SAME)
        for line in sys.stdin:
            versions, errors = collections.Counter(), collections.Counter()
            for _ in range(int(line)):
                try:
                    versions[call(b"", timeout=10, wait_for_ready=True).decode()] += 1
                except grpc.RpcError as error:
                    errors[f"{error.code().name}: {error.details()}"] += 1
            print(json.dumps({"versions": versions, "errors": errors}), flush=True)


{"server": lambda: server(int(sys.argv[2]), sys.argv[3]), "client": lambda: client(sys.argv[2])}[sys.argv[1]]()
