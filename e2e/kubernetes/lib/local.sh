# The real components, started directly on this host: one node, no container registry, everything below $run.
#
# The node has an address of its own on a bridge without ports, so nothing here depends on the host's network. Pods hang
# on routed veth pairs (CNI `ptp`): every packet between pods is routed, hence seen by kube-proxy's rules in both
# directions without any bridge netfilter module.

# shellcheck source=/dev/null
. "$here/lib/local-clean.sh"

bridge=mesh-e2e0
node=10.245.0.1
pods=10.244.0.0/24
services=10.96.0.0/16
network=mesh-e2e
# Off the ports that other clusters use.
etcd=127.0.0.1:22379
api=https://$node:26443

cluster_kubeconfig() { echo "$run/kubeconfig"; }
kube() { kubectl --kubeconfig "$run/kubeconfig" "$@"; }
ctr_run() { ctr -a "$run/containerd.sock" -n k8s.io "$@"; }

# start NAME COMMAND...: in the background, its output in log/NAME.log and its process id in pid/NAME.
start() {
  local name=$1
  shift
  setsid "$@" >>"$run/log/$name.log" 2>&1 </dev/null &
  echo $! >"$run/pid/$name"
}

cluster_up() {
  [ "$(id -u)" = 0 ] || fail "the local cluster needs root"
  need_programs
  build_all
  clean
  need_no_other_node
  local began=$SECONDS
  mkdir -p "$run"/{etcd,pki,log,pid,cni,cni-bin,containerd,kubelet,ipam}
  make_network
  make_pki
  start etcd etcd --data-dir "$run/etcd" --listen-client-urls "http://$etcd" --advertise-client-urls "http://$etcd" \
    --listen-peer-urls http://127.0.0.1:22380 --log-level warn
  await 20 "etcd answers" curl -sf "http://$etcd/health"
  start_apiserver
  start_containerd
  await 60 "the API server is ready" kube get --raw /readyz
  start_controllers
  start_node
  await 60 "the node is ready" kube wait --for=condition=Ready node/node1 --timeout=1s
  start_dns
  say "up in $((SECONDS - began)) s"
  cluster_kubeconfig
}

# Two kube-proxies would write the same tables.
need_no_other_node() {
  local table
  for table in "${kube_proxy_tables[@]}"; do
    # shellcheck disable=SC2086
    ! nft list table $table >/dev/null 2>&1 ||
      fail "this host is a node of another cluster already (nftables has a table kube-proxy): use E2E_CLUSTER=kubeconfig there"
  done
}

cluster_down() { clean; }

cluster_status() {
  kube get --raw /readyz >/dev/null || fail "no API server at $api"
  kube get nodes
}

cluster_import() {
  local archive
  for archive in "$@"; do ctr_run images import --digests=false "$archive" >&2; done
}

cluster_kill_apiserver() {
  local pid
  pid=$(cat "$run/pid/kube-apiserver")
  names_run "$pid" || fail "no API server runs"
  kill -9 "$pid"
  await 10 "the API server is gone" not names_run "$pid"
  sleep "$1"
  start_apiserver
  await 60 "the API server is ready" kube get --raw /readyz
}

not() { ! "$@"; }

cluster_cni() { echo "$run/cni-bin $run/cni"; }

cluster_cni_files() { (cd "$run/cni" && tail -v -n +1 -- *); }

cluster_kill() { ctr_run tasks kill -s SIGKILL "$1"; }

cluster_sign_token() { sign_with "$run/pki/sa.key"; }

cluster_audit() { cat "$run/log/audit.log"; }

need_programs() {
  local missing=() program package
  while read -r program package; do command -v "$program" >/dev/null || missing+=("$package"); done <<'P'
etcd etcd-server
containerd containerd
ctr containerd
runc runc
kubectl kubernetes-client
nft nftables
conntrack conntrack
socat socat
openssl openssl
curl curl
ip iproute2
P
  [ -n "$(cni_folder)" ] || missing+=(containernetworking-plugins)
  [ ${#missing[@]} -eq 0 ] || fail "please install the programs of these Debian packages: ${missing[*]}"
}

cni_folder() {
  local folder
  for folder in /usr/lib/cni /opt/cni/bin; do [ -x "$folder/ptp" ] && echo "$folder" && return; done
  true
}

make_network() {
  sysctl -qw net.ipv4.ip_forward=1
  ip link add "$bridge" type bridge
  ip addr add "$node/32" dev "$bridge"
  ip link set "$bridge" up
  # Services are reached from the host too (webhooks), whether or not it has a default route.
  ip route add "$services" dev "$bridge" src "$node"
  # A host with Docker forwards nothing that no rule names.
  if command -v iptables >/dev/null && iptables -S FORWARD 2>/dev/null | grep -q '^-P FORWARD DROP'; then
    iptables -I FORWARD -s "$pods" -m comment --comment "$network" -j ACCEPT
    iptables -I FORWARD -d "$pods" -m comment --comment "$network" -j ACCEPT
  fi
  # Others put plugins of their own beside them.
  ln -s "$(cni_folder)"/* "$run/cni-bin/"
  cat >"$run/cni/10-ptp.conflist" <<C
{"cniVersion": "0.4.0", "name": "$network", "plugins": [{"type": "ptp", "ipMasq": false, "ipam":
  {"type": "host-local", "dataDir": "$run/ipam", "ranges": [[{"subnet": "$pods"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
C
}

make_pki() {
  local pki=$run/pki
  make_ca "$pki"
  make_certificate "$pki" apiserver /CN=kube-apiserver \
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:10.96.0.1,IP:$node,IP:127.0.0.1"
  make_certificate "$pki" admin /O=system:masters/CN=admin
  make_certificate "$pki" node1 /O=system:nodes/CN=system:node:node1
  openssl genrsa -out "$pki/sa.key" 2048 2>/dev/null
  openssl rsa -in "$pki/sa.key" -pubout -out "$pki/sa.pub" 2>/dev/null
  write_kubeconfig "$pki" admin "$api" "$run/kubeconfig"
  write_kubeconfig "$pki" node1 "$api" "$run/kubelet.kubeconfig"
}

start_apiserver() {
  local pki=$run/pki
  # What the mesh's own service account asks for, and nobody else.
  cat >"$run/audit.yaml" <<C
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules: [{level: Metadata, userGroups: ["system:serviceaccounts:mesh-system"]}, {level: None}]
C
  start kube-apiserver "$tools/kube-apiserver" --etcd-servers="http://$etcd" --bind-address="$node" --secure-port=26443 \
    --advertise-address="$node" --service-cluster-ip-range="$services" --authorization-mode=Node,RBAC \
    --enable-admission-plugins=NodeRestriction --allow-privileged=true --kubelet-preferred-address-types=InternalIP \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
    --audit-policy-file="$run/audit.yaml" --audit-log-path="$run/log/audit.log" --audit-log-maxsize=100
}

start_controllers() {
  start kube-controller-manager "$tools/kube-controller-manager" --kubeconfig="$run/kubeconfig" --leader-elect=false \
    --bind-address=127.0.0.1 --secure-port=22257 --service-account-private-key-file="$run/pki/sa.key" \
    --use-service-account-credentials=true --root-ca-file="$run/pki/ca.crt" --node-monitor-grace-period=60s
  start kube-scheduler "$tools/kube-scheduler" --kubeconfig="$run/kubeconfig" --leader-elect=false \
    --bind-address=127.0.0.1 --secure-port=22259
}

start_containerd() {
  cat >"$run/containerd.toml" <<C
version = 2
root = "$run/containerd/root"
state = "$run/containerd/state"
[grpc]
  address = "$run/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$run/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  # Without CAP_SYS_RESOURCE nobody may lower a process's score.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  sandbox_image = "$pause_image"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "$run/containerd/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$run/cni-bin"
    conf_dir = "$run/cni"
C
  start containerd containerd -c "$run/containerd.toml"
  await 30 "containerd answers" ctr -a "$run/containerd.sock" version
  cluster_import "$tools/pause.tar" "$tools/coredns.tar"
}

start_node() {
  echo "nameserver 127.0.0.1" >"$run/resolv.conf"
  cat >"$run/kubelet.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
port: 22250
healthzPort: 22248
address: $node
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $run/pki/ca.crt}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix://$run/containerd.sock
cgroupDriver: cgroupfs
failSwapOn: false
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: $run/resolv.conf
podLogsDir: $run/pods
volumePluginDir: $run/kubelet/plugins-exec
registerWithTaints: []
# Nothing is ever pulled again: neither pods nor images may go because the host's disk is full.
imageGCHighThresholdPercent: 100
evictionHard: {imagefs.available: "0%", nodefs.available: "0%", memory.available: "50Mi"}
C
  start kubelet "$tools/kubelet" --config="$run/kubelet.yaml" --kubeconfig="$run/kubelet.kubeconfig" \
    --root-dir="$run/kubelet" --hostname-override=node1 --node-ip="$node" \
    --node-labels=topology.kubernetes.io/region=local,topology.kubernetes.io/zone=local-a
  start kube-proxy "$tools/kube-proxy" --kubeconfig="$run/kubeconfig" --proxy-mode=nftables --cluster-cidr="$pods" \
    --hostname-override=node1 --conntrack-max-per-core=0 --healthz-bind-address=127.0.0.1:22256 \
    --metrics-bind-address=127.0.0.1:22249
}

# The cluster is up when a pod reaches a Service by its name: a Ready node can have a kube-proxy that does nothing.
start_dns() {
  sed "s|@IMAGE@|$coredns_image|" "$here/manifests/coredns.yaml" | kube apply -f - >/dev/null
  await 60 "CoreDNS is ready" kube -n kube-system rollout status deployment/coredns --timeout=1s
  await 30 "a Service answers by its address" dns_answers
}

dns_answers() {
  python3 - <<'P'
import socket
ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ask.settimeout(1)
name = b"".join(bytes([len(p)]) + p.encode() for p in "kubernetes.default.svc.cluster.local".split("."))
ask.sendto(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + name + b"\x00\x00\x01\x00\x01", ("10.96.0.10", 53))
assert ask.recv(512).endswith(bytes([10, 96, 0, 1])), "another answer"
P
}
