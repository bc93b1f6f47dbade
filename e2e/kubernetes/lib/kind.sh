# A cluster in containers, made by kind.

name=${E2E_KIND_NAME:-mesh-e2e}

cluster_kubeconfig() { echo "$run-kind/kubeconfig"; }
kube() { kubectl --kubeconfig "$(cluster_kubeconfig)" "$@"; }

cluster_up() {
  command -v kind >/dev/null || fail "kind is missing: go install sigs.k8s.io/kind@v0.33.0"
  cluster_down
  mkdir -p "$run-kind"
  local image=()
  [ -z "${E2E_KIND_IMAGE:-}" ] || image=(--image "$E2E_KIND_IMAGE")
  kind create cluster --name "$name" "${image[@]}" --kubeconfig "$(cluster_kubeconfig)" --wait 180s >&2
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

cluster_kill() { docker exec "$(kind get nodes --name "$name" | head -1)" ctr -n k8s.io tasks kill -s SIGKILL "$1"; }

cluster_audit() { true; }

cluster_restart_apiserver() {
  local node
  node=$(kind get nodes --name "$name" | grep control-plane | head -1)
  docker exec "$node" crictl stop "$(docker exec "$node" crictl ps -q --name kube-apiserver)" >&2
  await 120 "the API server is ready" kube get --raw /readyz
}
