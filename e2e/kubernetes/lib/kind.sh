# A cluster in containers, made by kind.

name=${E2E_KIND_NAME:-mesh-e2e}

cluster_kubeconfig() { echo "$run-kind/kubeconfig"; }
kube() { kubectl --kubeconfig "$(cluster_kubeconfig)" "$@"; }
# on_node COMMAND...: on the node that runs the control plane.
on_node() { docker exec "$name-control-plane" "$@"; }

cluster_up() {
  command -v kind >/dev/null || fail "kind is missing: go install sigs.k8s.io/kind@v0.33.0"
  cluster_down
  mkdir -p "$run-kind"
  cp "$here/kind/audit.yaml" "$run-kind/"
  sed "s|@AUDIT@|$run-kind/audit.yaml|" "$here/kind/cluster.yaml" >"$run-kind/cluster.yaml"
  local image=()
  [ -z "${E2E_KIND_IMAGE:-}" ] || image=(--image "$E2E_KIND_IMAGE")
  kind create cluster --name "$name" "${image[@]}" --config "$run-kind/cluster.yaml" \
    --kubeconfig "$(cluster_kubeconfig)" --wait 180s >&2
  await 120 "CoreDNS is ready" kube -n kube-system rollout status deployment/coredns --timeout=1s
  cluster_kubeconfig
}

cluster_down() {
  kind delete cluster --name "$name" --kubeconfig "$(cluster_kubeconfig)" >&2
  rm -rf "$run-kind"
}

cluster_status() { kube get nodes; }

cluster_import() {
  local archive
  for archive in "$@"; do kind load image-archive --name "$name" "$archive" >&2; done
}

cluster_cni() { echo "/opt/cni/bin /etc/cni/net.d"; }

cluster_cni_files() { on_node sh -c 'cd /etc/cni/net.d && tail -v -n +1 *'; }

cluster_kill() { on_node ctr -n k8s.io tasks kill -s SIGKILL "$1"; }

cluster_sign_token() { sign_with <(on_node cat /etc/kubernetes/pki/sa.key); }

cluster_audit() { on_node cat /var/log/kubernetes/audit.log; }

# Its kubelet starts it again for as long as it has its manifest, and would end it gently without.
cluster_kill_apiserver() {
  local container manifest=/etc/kubernetes/manifests/kube-apiserver.yaml
  container=$(on_node crictl ps -q --name kube-apiserver)
  [ -n "$container" ] || fail "no API server runs on the node"
  on_node sh -c "mv $manifest /etc/kubernetes/ && ctr -n k8s.io tasks kill -s SIGKILL $container"
  await 30 "the API server is gone" gone "$container"
  sleep "$1"
  on_node mv /etc/kubernetes/kube-apiserver.yaml "$manifest"
  await 180 "the API server is ready" kube get --raw /readyz
}

gone() { [ -z "$(on_node crictl ps -q --id "$1")" ]; }
