"""What e2e/bench compares: the proxies, the services behind them, and the two network namespaces that they are in."""
import json, os, re, signal, subprocess, sys, time
from dataclasses import dataclass

A, B = f"mb{os.getpid()}a", f"mb{os.getpid()}b"
A_IP, B_IP = "10.99.0.1", "10.99.0.2"


@dataclass
class Served:
    """A service: how its port is declared, the server's command line, the port of the server outside the mesh and of the one behind the second proxy."""

    protocol: str
    command: tuple
    plain: int
    pair: int


SERVED = {
    "http": Served("http", ("fixed", "--bytes", "100"), 9081, 9080),
    "big": Served("http", ("fixed", "--bytes", "1000000"), 9083, 9082),
    "huge": Served("http", ("fixed", "--bytes", "100000000"), 9085, 9084),
    # An HTTP server that nobody on the way knows to be one.
    "bytes": Served("tcp", ("fixed", "--bytes", "100000000"), 9087, 9086),
    "line": Served("tcp", ("tcp",), 9089, 9088),
    "grpc": Served("grpc", ("http",), 9091, 9090),
}
# A proxy listens for its client at the served port plus this; the second proxies of Envoy's and HAProxy's pairs likewise.
OFFSET = {"none": 0, "mesh-proxy": 10000, "Envoy": 20000, "HAProxy": 30000}
OTHER_ROUTES = [f"/other-{n}" for n in range(7)]
IDENTITY = "spiffe://bench/ns/default/sa/app"
started = []


def sh(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def inside(namespace, core, *command):
    return ["ip", "netns", "exec", namespace, "taskset", "-c", str(core), *command]


def start(name, command, work, **options):
    log = open(os.path.join(work, f"{name}.log"), "w")
    process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **options)
    process.log = log.name
    started.append(process)
    return process


def clean():
    for process in reversed(started):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in started:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    for namespace in (A, B):
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def namespaces():
    for namespace in (A, B):
        sh("ip", "netns", "add", namespace)
        sh("ip", "-n", namespace, "link", "set", "lo", "up")
    sh("ip", "link", "add", "va", "netns", A, "type", "veth", "peer", "name", "vb", "netns", B)
    for namespace, link, address, peer in ((A, "va", A_IP, B_IP), (B, "vb", B_IP, A_IP)):
        sh("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", link)
        sh("ip", "-n", namespace, "link", "set", link, "up")
        sh("ip", "-n", namespace, "route", "add", "default", "via", peer)
        # Many short connections follow each other.
        sh("ip", "netns", "exec", namespace, "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65000", "net.ipv4.tcp_tw_reuse=1",
           "net.ipv4.ip_local_reserved_ports=9080-9091,19080-19091,29080-29091,39080-39091,15000-15099")


def certificates(work):
    """One identity for both sides of the Envoy and HAProxy pairs."""
    run = lambda *c: sh("openssl", *c, cwd=work)
    run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key", "-out", "ca.pem",
        "-days", "2", "-subj", "/CN=bench")
    run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=leaf")
    with open(os.path.join(work, "san"), "w") as san:
        san.write(f"subjectAltName=URI:{IDENTITY}\n")
    run("x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san", "-out", "leaf.pem")
    with open(os.path.join(work, "both.pem"), "w") as both:
        both.write(open(os.path.join(work, "leaf.pem")).read() + open(os.path.join(work, "leaf.key")).read())


def envoy_config(work, name, listeners, tls_down, tls_up):
    """`listeners`: (what is served, address, upstream address) each."""
    def tls(kind, alpn, extra):
        return {"name": "tls", "typed_config": {
            "@type": f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}",
            "common_tls_context": {
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                "alpn_protocols": alpn,
                "tls_certificates": [{"certificate_chain": {"filename": f"{work}/leaf.pem"}, "private_key": {"filename": f"{work}/leaf.key"}}],
                "validation_context": {"trusted_ca": {"filename": f"{work}/ca.pem"}, "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": IDENTITY}}]}}, **extra}}
    address = lambda a: {"socket_address": {"address": a[0], "port_value": a[1]}}
    log = [{"name": "file", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                                             "path": f"{work}/{name}.access.log"}}]
    allow = {"action": "ALLOW", "policies": {"caller": {"permissions": [{"any": True}], "principals": [
        {"authenticated": {"principal_name": {"exact": IDENTITY}}}]}}}
    rbac = lambda kind, extra: {"name": "rbac", "typed_config": {
        "@type": f"type.googleapis.com/envoy.extensions.filters.{kind}.rbac.v3.RBAC", "rules": allow, **extra}}
    http2 = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}
    out, clusters = [], []
    for index, (served, listen, upstream) in enumerate(listeners):
        up = f"up{index}"
        cluster = {"name": up, "type": "STATIC", "connect_timeout": "2s", "load_assignment": {"cluster_name": up, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]}}
        if served.protocol == "tcp":
            alpn = ["bench"]
            filters = [{"name": "tcp", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                                                        "stat_prefix": f"bench{index}", "cluster": up, "access_log": log}}]
            if tls_down:
                filters.insert(0, rbac("network", {"stat_prefix": "rbac"}))
        else:
            alpn = ["h2"]
            route = {"cluster": up, "timeout": "15s", "retry_policy": {"retry_on": "connect-failure,refused-stream,reset-before-request", "num_retries": 2}}
            filters = [{"name": "http", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": f"bench{index}", "access_log": log, "http_filters": ([rbac("http", {})] if tls_down else []) + [
                    {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
                "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                    {"match": {"path_separated_prefix": prefix}, "route": route, "stat_prefix": prefix[1:]} for prefix in OTHER_ROUTES] + [
                    {"match": {"prefix": "/"}, "route": route, "stat_prefix": "rest"}]}]}}}]
            if tls_up or served.protocol == "grpc":
                cluster["typed_extension_protocol_options"] = http2
        chain = {"filters": filters}
        if tls_down:
            chain["transport_socket"] = tls("DownstreamTlsContext", alpn, {"require_client_certificate": True})
        if tls_up:
            cluster["transport_socket"] = tls("UpstreamTlsContext", alpn, {})
        out.append({"name": f"l{index}", "address": address(listen), "filter_chains": [chain]})
        clusters.append(cluster)
    path = os.path.join(work, f"{name}.json")
    with open(path, "w") as file:
        json.dump({"static_resources": {"listeners": out, "clusters": clusters}}, file)
    return path


def haproxy_config(work, name, listeners, tls_down, tls_up):
    path = os.path.join(work, f"{name}.cfg")
    with open(path, "w") as out:
        out.write("global\n  nbthread 1\n  maxconn 4000\n  log stdout format raw local0\ndefaults\n  log global\n  timeout connect 2s\n"
                  "  timeout client 60s\n  timeout server 60s\n  retries 2\n")
        for index, (served, listen, upstream) in enumerate(listeners):
            tcp, grpc = served.protocol == "tcp", served.protocol == "grpc"
            mode = "tcp" if tcp else "http"
            tls = f" ssl crt {work}/both.pem ca-file {work}/ca.pem verify required ssl-min-ver TLSv1.3" + ("" if tcp else " alpn h2")
            clear = " proto h2" if grpc else ""
            out.write(f"frontend f{index}\n  mode {mode}\n  option {mode}log\n  bind {listen[0]}:{listen[1]}{tls if tls_down else clear}\n")
            if tls_down:
                # It cannot read the SPIFFE ID, so it decides by the common name.
                out.write("  tcp-request content reject unless { ssl_c_s_dn(cn) leaf }\n" if tcp else "  http-request deny unless { ssl_c_s_dn(cn) leaf }\n")
            if not tcp:
                out.writelines(f"  use_backend o{index} if {{ path_beg {prefix} }}\n" for prefix in OTHER_ROUTES)
            out.write(f"  default_backend b{index}\n")
            for backend in "b" if tcp else "ob":
                reuse = "" if tcp else "  http-reuse always\n"
                out.write(f"backend {backend}{index}\n  mode {mode}\n{reuse}  server up {upstream[0]}:{upstream[1]}{tls if tls_up else clear}\n")
    return path


class Mesh:
    """mesh-control with one service in the mesh (`pair`) and one outside (`plain`), and the two proxies."""

    def __init__(self, bins, work):
        self.bins, self.work, self.data = bins, work, os.path.join(work, "data")
        os.mkdir(self.data)
        # It gives way to what measures, since elsewhere it has a machine of its own.
        start("mesh-control", ["nice", "-n", "19", "taskset", "-c", "1", f"{bins}/mesh-control", "--mode", "standalone", "--data", self.data, "--listen-xds", "127.0.0.1:0",
                               "--listen-plaintext", "off", "--listen-metrics", "127.0.0.1:0"], work)
        until(lambda: self.ctl("version"), "mesh-control")
        ports = ", ".join(f"{{port: {it.plain}, protocol: {it.protocol}}}" for it in SERVED.values())
        self.apply("plain", f"apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: plain, namespace: default}}\n"
                            f"spec: {{service: plain, addresses: [{B_IP}], ports: [{ports}], mesh: false}}\n")
        excluded = [str(it.plain) for it in SERVED.values()]
        excluded += [str(it.pair + OFFSET[name]) for it in SERVED.values() for name in ("Envoy", "HAProxy")]
        sh("ip", "netns", "exec", B, f"{bins}/mesh-proxy", "intercept", "--exclude-inbound-ports", ",".join(excluded))
        server_ports = [a for it in SERVED.values() for a in ("--port", f"{it.pair}:{it.protocol}")]
        self.server = self.proxy("server", B, "--service", "pair", "--version", "v1", "--address", B_IP, *server_ports)
        # A forward is for HTTP: byte streams go by the redirect, which leaves alone what has no virtual address.
        sh("ip", "netns", "exec", A, f"{bins}/mesh-proxy", "intercept", "--no-dns", "--exclude-cidrs", "10.99.0.0/24")
        forwards = [(service, port) for it in SERVED.values() if it.protocol != "tcp" for service, port in (("plain", it.plain), ("pair", it.pair))]
        self.client = self.proxy("client", A, "--address", A_IP, *(a for service, port in forwards for a in (
            "--forward", f"127.0.0.1:{port + OFFSET['mesh-proxy']}={service}.default.svc.cluster.local:{port}")))
        rules = lambda service, port: "".join(
            f"  - matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]\n    timeouts: {{request: 15s}}\n"
            f"    backendRefs: [{{name: {service}, port: {port}}}]\n" for prefix in [*OTHER_ROUTES, "/"])
        self.apply("routes", "---\n".join(
            f"apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {service}-{port}, namespace: default}}\nspec:\n"
            f"  parentRefs: [{{group: '', kind: Service, name: {service}, port: {port}}}]\n  rules:\n{rules(service, port)}"
            for it in SERVED.values() if it.protocol != "tcp" for service, port in (("plain", it.plain), ("pair", it.pair))))
        self.apply("access", "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: pair, namespace: default}\nspec:\n"
                             "  targetRefs: [{kind: Service, name: pair}]\n  rules:\n  - from: [{serviceAccounts: [client]}]\n")

        until(self.find_services, "the services")

    def find_services(self):
        self.virtual = {it["name"]: next(a for a in it["virtualAddresses"] if ":" not in a) for it in json.loads(self.ctl("get", "services", "-o", "json"))}
        assert self.virtual.keys() >= {"plain", "pair"}, self.virtual

    def apply(self, name, text):
        path = os.path.join(self.work, f"{name}.yaml")
        with open(path, "w") as out:
            out.write(text)
        until(lambda: self.ctl("apply", "-f", path), f"meshctl apply of {name}")

    def ctl(self, *args):
        return sh(f"{self.bins}/meshctl", "--control", f"unix:{self.data}/control.sock", *args)

    def proxy(self, account, namespace, *args):
        token = os.path.join(self.work, f"{account}.token")
        with open(token, "w") as out:
            out.write(self.ctl("token", "create", "--service-account", account).strip())
        command = inside(namespace, 0, f"{self.bins}/mesh-proxy", "run", "--control", f"unix:{self.data}/proxy.sock", "--token-file", token,
                         "--workload", account, "--workers", "1", "--access-log", "text", "--access-log-file",
                         os.path.join(self.work, f"{account}.access.log"), *args)
        return start(f"mesh-{account}", command, self.work)

    def other_client(self, account, *args):
        """Instead of the one that there is: both would listen on the same ports."""
        self.client.terminate()
        self.client.wait(20)
        self.client = self.proxy(account, A, "--address", A_IP, *args)
        return self.client


def until(check, what):
    deadline = time.monotonic() + 20
    while True:
        try:
            return check()
        except (subprocess.CalledProcessError, AssertionError) as error:
            if time.monotonic() > deadline:
                detail = getattr(error, "stderr", "") or error
                sys.exit(f"bench: {what} did not come up: {detail}\n" + "\n".join(tail(p) for p in started))
            time.sleep(0.1)


def tail(process):
    return f"--- {process.log}\n" + "".join(open(process.log).readlines()[-12:])


def rss(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{pid}/status").read())[1]) / 1024
