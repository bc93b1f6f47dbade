# What the local cluster runs, built from Go modules into $tools: once, and again when a module changes.

kubernetes_version=1.34.4
coredns_image=registry.k8s.io/coredns/coredns:e2e
pause_image=registry.k8s.io/pause:3.10

# go_build NAME LDFLAGS: builds go/NAME into $tools/NAME, unless what is there came of the same sources.
go_build() {
  local name=$1 flags=$2 source=$here/go/$1 stamp
  stamp=$(cat "$source"/* | sha256sum | cut -d' ' -f1)-$flags
  [ -x "$tools/$name" ] && [ "$(cat "$tools/$name.stamp" 2>/dev/null)" = "$stamp" ] && return 0
  command -v go >/dev/null || fail "Go 1.24 or later is missing: see https://go.dev/dl"
  mkdir -p "$tools"
  local start=$SECONDS
  say "building $name (once)"
  (cd "$source" && CGO_ENABLED=0 GOFLAGS="-buildvcs=false -mod=readonly" nice go build -trimpath -ldflags "-s -w $flags" -o "$tools/$name" .) ||
    fail "cannot build $name"
  echo "$stamp" >"$tools/$name.stamp"
  say "built $name in $((SECONDS - start)) s"
}

build_all() {
  local version=k8s.io/component-base/version component
  go_build kube "-X $version.gitVersion=v$kubernetes_version -X $version.gitMajor=1 -X $version.gitMinor=34"
  for component in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do
    ln -sf kube "$tools/$component"
  done
  go_build pause ""
  go_build coredns ""
  local image=$repository/deploy/images/mesh-image
  "$image" build --name "$pause_image" --out "$tools/pause.tar" --entrypoint /pause "$tools/pause:/pause" >/dev/null
  "$image" build --name "$coredns_image" --out "$tools/coredns.tar" --entrypoint /coredns "$tools/coredns:/coredns" >/dev/null
}
