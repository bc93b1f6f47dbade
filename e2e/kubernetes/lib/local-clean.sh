# Takes away whatever a local cluster left on this host, whether it ended by itself or was killed. Every step names what
# it ends by something that only this cluster has: a recorded process id whose command line names $run, a mount below it.

kube_proxy_tables=("ip kube-proxy" "ip6 kube-proxy")

clean() {
  [ "$(id -u)" = 0 ] || fail "the local cluster needs root"
  local name
  for name in kubelet kube-proxy kube-scheduler kube-controller-manager kube-apiserver; do end_process $name; done
  end_containers
  for name in containerd etcd; do end_process $name; done
  unmount_all
  remove_network
  remove_leftovers
}

# end_process NAME: the process that `start` recorded, if it is still that one.
end_process() {
  local file=$run/pid/$1 pid tries=0
  pid=$(cat "$file" 2>/dev/null) || return 0
  if names_run "$pid"; then
    kill "$pid" 2>/dev/null || true
    while names_run "$pid"; do
      tries=$((tries + 1))
      [ $tries -lt 100 ] || kill -9 "$pid" 2>/dev/null || true
      sleep 0.05
    done
  fi
  rm -f "$file"
}

names_run() { tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF "$run"; }

# The shims of our containerd outlive it. Each is the parent of its containers' first processes.
end_containers() {
  local shim socket
  for shim in $(shims); do
    kill -9 $(cat "/proc/$shim/task/$shim/children") "$shim" 2>/dev/null || true
  done
  for socket in "$run"/containerd/state/io.containerd.runtime.v2.task/k8s.io/*/address; do
    [ -f "$socket" ] && socket=$(cat "$socket") && rm -f "${socket#unix://}"
  done
  find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2>/dev/null || true
}

shims() {
  local folder
  for folder in /proc/[0-9]*; do
    grep -qzxF "$run/containerd.sock" "$folder/cmdline" 2>/dev/null && grep -qz containerd-shim "$folder/cmdline" &&
      echo "${folder#/proc/}"
  done
  true
}

unmount_all() {
  local point
  # Deepest first, and lazily: a process that is just ending may still hold one.
  awk -v run="$run/" 'index($5, run) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r point; do
    umount -l "$point" 2>/dev/null || true
  done
}

remove_network() {
  local link table rule
  # With its namespace a pod's end of the pair goes, and with it the host's; what is left has a route to a pod.
  ip -o route show 2>/dev/null | awk '$1 ~ /^10\.244\.0\./ { for (i = 2; i < NF; i++) if ($i == "dev") print $(i + 1) }' |
    while read -r link; do case $link in veth*) ip link del "$link" 2>/dev/null || true ;; esac; done
  ip link del "$bridge" 2>/dev/null || true
  # Without the folder they are somebody else's.
  if [ -d "$run" ]; then
    for table in "${kube_proxy_tables[@]}"; do
      # shellcheck disable=SC2086
      nft delete table $table 2>/dev/null || true
    done
  fi
  if command -v iptables >/dev/null; then
    iptables -S FORWARD 2>/dev/null | sed -n "/--comment $network/s/^-A/-D/p" | while read -r rule; do
      # shellcheck disable=SC2086
      iptables $rule || true
    done
  fi
}

# The folder, and what the components keep outside of it: one file for each network of a pod, one link for each log. The
# loopback network's files are named after containers alone, which are ours if they had a folder in $run.
remove_leftovers() {
  local bundle
  for bundle in "$run"/containerd/root/io.containerd.grpc.v1.cri/sandboxes/*/; do
    rm -f /var/lib/cni/results/cni-loopback-"$(basename "$bundle")"-lo
  done
  rm -f /var/lib/cni/results/"$network"-*
  [ ! -d "$run" ] || rm -rf --one-file-system "$run"
  # The links point into the folder that is gone now.
  find /var/log/containers -lname "$run/*" -delete 2>/dev/null || true
}
