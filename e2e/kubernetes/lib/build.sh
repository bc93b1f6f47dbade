# What the local cluster runs, built from Go modules into $tools: once, and again when a module changes.

kubernetes_version=1.34.4
coredns_image=registry.k8s.io/coredns/coredns:e2e
pause_image=registry.k8s.io/pause:3.10
# What the pods of the conformance suite ask for.
echo_image=registry.k8s.io/gateway-api/echo-advanced:v1.5.1

# go_build NAME LDFLAGS [COMMAND...]: runs COMMAND (`go build .` if none is given) in go/NAME so that it writes to
# $tools/NAME, unless what is there came of the same sources.
go_build() {
  local name=$1 flags=$2 source=$here/go/$1 stamp
  shift 2
  [ $# -gt 0 ] || set -- build .
  stamp=$(cat "$source"/* | sha256sum | cut -d' ' -f1)-$flags
  [ -e "$tools/$name" ] && [ "$(cat "$tools/$name.stamp" 2>/dev/null)" = "$stamp" ] && return 0
  command -v go >/dev/null || fail "Go 1.26 or later is missing: see https://go.dev/dl"
  mkdir -p "$tools"
  local start=$SECONDS
  say "building $name (once)"
  (cd "$source" && CGO_ENABLED=0 GOFLAGS="-buildvcs=false -mod=readonly -trimpath" \
    nice go "$1" -ldflags "-s -w $flags" -o "$tools/$name" "${@:2}") || fail "cannot build $name"
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
  # As those who may use low ports, and in a pod no others are given that right.
  "$image" build --name "$coredns_image" --user 0:0 --out "$tools/coredns.tar" --entrypoint /coredns \
    "$tools/coredns:/coredns" >/dev/null
}

# What the conformance suite runs: itself, and the image of its pods.
build_conformance() {
  local echo=istio.io/istio/pkg/test/echo/cmd
  go_build conformance "" test -c .
  mkdir -p "$tools/echo"
  go_build echo "" build "$echo/server" "$echo/client"
  [ "$tools/echo.tar" -nt "$tools/echo.stamp" ] && return 0
  # As public as the key in the image that this one stands for.
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=echo \
    -addext subjectAltName=DNS:echo -keyout "$tools/echo/cert.key" -out "$tools/echo/cert.crt" 2>/dev/null
  "$repository/deploy/images/mesh-image" build --name "$echo_image" --out "$tools/echo.tar" \
    --entrypoint /usr/local/bin/server "$tools/echo/server:/usr/local/bin/server" \
    "$tools/echo/client:/usr/local/bin/client" "$tools/echo/cert.crt:/cert.crt" "$tools/echo/cert.key:/cert.key" >/dev/null
}

# Helm itself, which renders the chart.
build_helm() { go_build helm "" build helm.sh/helm/v3/cmd/helm; }
# The conformance tests of HTTP/2, which need no cluster.
build_h2spec() { go_build h2spec "" build github.com/summerwind/h2spec/cmd/h2spec; }
