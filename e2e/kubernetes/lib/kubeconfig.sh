# A cluster that is there already, as KUBECONFIG (or ~/.kube/config) and its current context say.

cluster_kubeconfig() { echo "${KUBECONFIG:-$HOME/.kube/config}"; }
kube() { kubectl "$@"; }

cluster_up() {
  cluster_status >&2
  cluster_kubeconfig
}

# Not ours to take away: the suite removes what it made in it.
cluster_down() { true; }

cluster_status() { kube get nodes; }

cluster_import() {
  [ -n "${E2E_IMPORT:-}" ] || fail "set E2E_IMPORT to a command that makes image archives known to the cluster's nodes"
  # shellcheck disable=SC2086
  $E2E_IMPORT "$@"
}

cluster_cni() { echo "${E2E_CNI:-/opt/cni/bin /etc/cni/net.d}"; }

cluster_kill() { fail "not on a cluster that is not ours"; }

cluster_cni_files() { fail "not on a cluster that is not ours"; }

cluster_sign_token() { fail "not on a cluster that is not ours"; }

cluster_audit() { fail "not on a cluster that is not ours"; }

cluster_kill_apiserver() { fail "not on a cluster that is not ours"; }
