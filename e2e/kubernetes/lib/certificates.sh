# A small certificate authority for the local cluster, made anew with each cluster; and tokens.

# make_ca FOLDER
make_ca() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=mesh-e2e-ca \
    -addext keyUsage=critical,keyCertSign,cRLSign -keyout "$1/ca.key" -out "$1/ca.crt" 2>/dev/null
}

# make_certificate FOLDER NAME SUBJECT [SAN]: signed by the authority, for servers and clients.
make_certificate() {
  local folder=$1 name=$2 subject=$3 san=${4:-}
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$subject" -keyout "$folder/$name.key" 2>/dev/null |
    openssl x509 -req -days 30 -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial -out "$folder/$name.crt" \
      -extfile <(printf 'extendedKeyUsage=serverAuth,clientAuth\n%s' "${san:+subjectAltName=$san}") 2>/dev/null
}

# write_kubeconfig FOLDER NAME SERVER OUT
write_kubeconfig() {
  local data="base64 -w0"
  cat >"$4" <<K
apiVersion: v1
kind: Config
clusters: [{name: mesh-e2e, cluster: {server: "$3", certificate-authority-data: $($data "$1/ca.crt")}}]
users: [{name: $2, user: {client-certificate-data: $($data "$1/$2.crt"), client-key-data: $($data "$1/$2.key")}}]
contexts: [{name: mesh-e2e, context: {cluster: mesh-e2e, user: $2}}]
current-context: mesh-e2e
K
  chmod 600 "$4"
}

# sign_with KEY: a token of what is on standard input, its first two parts, signed with this RSA key (RS256).
sign_with() {
  local parts signature
  parts=$(cat)
  signature=$(printf %s "$parts" | openssl dgst -sha256 -sign "$1" -binary | basenc --base64url -w0)
  echo "$parts.${signature%%=*}"
}
