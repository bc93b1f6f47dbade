//! Whom tokens name, and what that is good for: the same objects, compiled to the bytes that a proxy gets and decided as the
//! proxy does; and a mesh whose proxies do, with keys that its control plane fetches.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, Method};
use mesh_control::compile::ClientKind;
use mesh_control::model::{Fetched, Keys};
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::eventually;
use mesh_e2e::reviews;
use mesh_proxy::authorization::{Subject, decide};
use mesh_proxy::config::{Listener, NetworkFilter};
use mesh_proxy::jwt;
use mesh_proxy::route;
use serde_json::{Value, json};

struct Issuer {
    name: String,
    pair: EcdsaKeyPair,
}

impl Issuer {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap() }
    }

    fn jwks(&self) -> String {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "x": x, "y": y}]}).to_string()
    }

    fn token(&self, claims: Value) -> String {
        let mut all = json!({"iss": self.name, "sub": "ann", "exp": now() + 300.0});
        claims.as_object().unwrap().iter().for_each(|(name, value)| all[name] = value.clone());
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "k"})), part(&all));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn rule(&self) -> Value {
        json!({"issuer": self.name, "jwks": self.jwks()})
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn object(kind: &str, name: &str, spec: &Value) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    let metadata = json!({"namespace": namespace, "name": name});
    json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}).to_string()
}

/// What the proxy of `reviews` gets.
fn listener(objects: &[String], keys: &Keys, client: ClientKind) -> Arc<Listener> {
    reviews::listener(objects, keys, client).unwrap()
}

fn of_mesh(objects: &[String]) -> Arc<Listener> {
    listener(objects, &Keys::default(), ClientKind::Mesh)
}

/// The status that a request with this token gets, as from a proxy; `""`: without a token.
fn status(listener: &Listener, token: &str) -> u16 {
    let of_port = listener.chains.iter().filter(|chain| chain.matches.destination_port == Some(9080));
    let manager = of_port.filter_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) => Some(manager),
        NetworkFilter::Tcp(_) => None,
    });
    let manager = manager.into_iter().next().unwrap();
    let mut headers = HeaderMap::new();
    if !token.is_empty() {
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let verified = match &manager.jwt {
        None => Ok(None),
        Some(authn) => jwt::check(authn, &headers, None, now()),
    };
    let Ok(verified) = verified else { return 401 };
    let method = Method::GET;
    let request = route::Subject {
        method: &method,
        authority: "reviews",
        path: "/",
        query: None,
        headers: &headers,
        grpc: false,
    };
    let claims = verified.as_deref().map(|it| &it.claims);
    let subject = subject(Some(request));
    if decide(&manager.authorization, &Subject { claims, ..subject }).refused.is_some() { 403 } else { 200 }
}

fn takes_stream(listener: &Listener) -> bool {
    let mut tcp = listener.chains.iter().filter_map(|chain| match &chain.filter {
        NetworkFilter::Tcp(proxy) if chain.matches.destination_port == Some(9080) => Some(&proxy.authorization),
        _ => None,
    });
    decide(tcp.next().unwrap(), &subject(None)).refused.is_none()
}

fn subject<'a>(request: Option<route::Subject<'a>>) -> Subject<'a> {
    let (peer, destination) = ("10.1.0.9:40000".parse().unwrap(), "10.1.0.1:9080".parse().unwrap());
    Subject { peer, destination, identity: Some("spiffe://mesh.local/ns/shop/sa/web"), request, claims: None }
}

#[test]
fn a_token_is_needed_only_where_a_policy_asks_and_must_be_good_where_a_rule_looks() {
    let (a, b) = (Issuer::new("https://a"), Issuer::new("https://b"));
    let alone = of_mesh(&[object("RequestAuthentication", "shop/a", &json!({"jwtRules": [a.rule()]}))]);
    assert_eq!(
        [status(&alone, ""), status(&alone, &a.token(json!({}))), status(&alone, &b.token(json!({})))],
        [200, 200, 401]
    );
    assert!(takes_stream(&alone));
    for (name, target) in [("shop/a", "ratings"), ("other/a", "reviews")] {
        let spec = json!({"jwtRules": [a.rule()], "targetRefs": [{"kind": "Service", "name": target}]});
        let elsewhere = of_mesh(&[object("RequestAuthentication", name, &spec)]);
        assert_eq!(status(&elsewhere, "rubbish"), 200, "{name} {target}");
    }
    assert_eq!(status(&of_mesh(&[]), "rubbish"), 200);
}

#[test]
fn rules_of_all_scopes_count_and_of_one_issuer_the_narrowest() {
    let (mesh, namespace, service) = (Issuer::new("https://a"), Issuer::new("https://a"), Issuer::new("https://a"));
    let other = Issuer::new("https://b");
    let of_mesh_scope =
        object("RequestAuthentication", "mesh-system/m", &json!({"jwtRules": [mesh.rule(), other.rule()]}));
    let of_namespace = object("RequestAuthentication", "shop/n", &json!({"jwtRules": [namespace.rule()]}));
    let target = json!([{"kind": "Service", "name": "reviews"}]);
    let of_service =
        object("RequestAuthentication", "shop/s", &json!({"targetRefs": target, "jwtRules": [service.rule()]}));
    for (objects, good) in [
        (vec![of_mesh_scope.clone()], &mesh),
        (vec![of_mesh_scope.clone(), of_namespace.clone()], &namespace),
        (vec![of_service, of_mesh_scope, of_namespace], &service),
    ] {
        let listener = of_mesh(&objects);
        for issuer in [&mesh, &namespace, &service] {
            let expected = if std::ptr::eq(issuer, good) { 200 } else { 401 };
            assert_eq!(status(&listener, &issuer.token(json!({}))), expected);
        }
        assert_eq!(status(&listener, &other.token(json!({}))), 200);
    }
}

#[test]
fn policies_decide_by_what_the_token_says() {
    let (a, ab) = (Issuer::new("https://a"), Issuer::new("https://a/b"));
    let rules = object("RequestAuthentication", "shop/a", &json!({"jwtRules": [a.rule(), ab.rule()]}));
    let token = |claims: Value| a.token(claims);
    let ann = token(json!({}));
    // Together with its issuer, this subject is written as another one of the other issuer is.
    let alike = (token(json!({"sub": "b/ann"})), ab.token(json!({"sub": "ann"})));
    let groups = token(
        json!({"groups": ["x", "editors"], "scope": "read write", "level": 3, "ok": true, "realm": {"roles": ["r"]}}),
    );
    let odd = token(json!({"groups": {"editors": true}}));
    let nobody = token(json!({"sub": null}));
    for (source, inside, outside) in [
        (json!({"requestPrincipals": ["*"]}), vec![&ann, &alike.0, &alike.1, &groups], vec![&nobody]),
        (json!({"requestPrincipals": ["https://a/ann"]}), vec![&ann, &groups], vec![&alike.0, &alike.1]),
        (json!({"requestPrincipals": ["https://a/*"]}), vec![&ann, &alike.0, &alike.1], vec![&nobody]),
        (json!({"requestPrincipals": ["https://a/b/*"]}), vec![&alike.0, &alike.1], vec![&ann]),
        (json!({"requestPrincipals": ["*/ann"]}), vec![&ann, &alike.0, &alike.1], vec![]),
        (json!({"requestPrincipals": ["*a/ann"]}), vec![&ann], vec![&alike.0, &alike.1]),
        (json!({"requestPrincipals": ["https://c/ann"]}), vec![], vec![&ann, &alike.0]),
        (json!({"notRequestPrincipals": ["https://a/ann"]}), vec![&alike.0, &alike.1], vec![&ann]),
        (json!({"claims": [{"path": ["groups"], "values": ["edit*"]}]}), vec![&groups], vec![&ann]),
        (json!({"claims": [{"path": ["groups"], "notValues": ["editors"]}]}), vec![&ann], vec![&groups]),
        (json!({"claims": [{"path": ["groups"], "values": ["*"]}]}), vec![&groups, &odd], vec![&ann]),
        (json!({"claims": [{"path": ["scope"], "values": ["read"]}]}), vec![&groups], vec![&ann]),
        (json!({"claims": [{"path": ["level"], "values": ["3"]}]}), vec![&groups], vec![&ann]),
        (json!({"claims": [{"path": ["ok"], "values": ["true"]}]}), vec![&groups], vec![&ann]),
        (json!({"claims": [{"path": ["realm", "roles"], "values": ["r"]}]}), vec![&groups], vec![&ann]),
        (json!({"serviceAccounts": ["web"], "requestPrincipals": ["*"]}), vec![&ann], vec![]),
        (json!({"serviceAccounts": ["api"], "requestPrincipals": ["*"]}), vec![], vec![&ann]),
    ] {
        let policy = |action: &str| {
            let spec = json!({"action": action, "rules": [{"from": [source]}]});
            of_mesh(&[rules.clone(), object("AuthorizationPolicy", "shop/p", &spec)])
        };
        let (allows, denies) = (policy("ALLOW"), policy("DENY"));
        assert_eq!(status(&allows, ""), 403, "ALLOW {source}: without a token");
        for (tokens, [allowed, denied]) in [(&inside, [200, 403]), (&outside, [403, 200])] {
            for (i, token) in tokens.iter().enumerate() {
                assert_eq!([status(&allows, token), status(&denies, token)], [allowed, denied], "{source} {i}");
            }
        }
        assert!(!takes_stream(&allows), "ALLOW {source}: nobody goes round it by speaking something else");
        let of_others = source["serviceAccounts"] == json!(["api"]);
        assert_eq!(takes_stream(&denies), of_others, "DENY {source}");
    }
    let policy = |action: &str, source: Value| {
        let spec = json!({"action": action, "rules": [{"from": [source]}]});
        of_mesh(&[rules.clone(), object("AuthorizationPolicy", "shop/p", &spec)])
    };
    // Those without a token are meant where that is said.
    let without = policy("DENY", json!({"notRequestPrincipals": ["*"]}));
    assert_eq!([status(&without, ""), status(&without, &ann), status(&without, "x")], [403, 200, 401]);
    let only_without = policy("ALLOW", json!({"notRequestPrincipals": ["*"]}));
    assert_eq!([status(&only_without, ""), status(&only_without, &ann)], [200, 403]);
    // What is not certain lets nobody in.
    let editors = json!({"claims": [{"path": ["groups"], "values": ["editors"]}]});
    assert_eq!(["ALLOW", "DENY"].map(|action| status(&policy(action, editors.clone()), &odd)), [403, 403]);
    let others = json!({"claims": [{"path": ["groups"], "notValues": ["editors"]}]});
    assert_eq!(["ALLOW", "DENY"].map(|action| status(&policy(action, others.clone()), &odd)), [403, 403]);
}

#[test]
fn without_keys_no_token_is_good_and_with_them_it_is() {
    let a = Issuer::new("https://a");
    let uri = "https://a/keys";
    let objects =
        [object("RequestAuthentication", "shop/a", &json!({"jwtRules": [{"issuer": a.name, "jwksUri": uri}]}))];
    for client in [ClientKind::Mesh, ClientKind::Envoy] {
        let none = listener(&objects, &Keys::default(), client);
        assert_eq!([status(&none, ""), status(&none, &a.token(json!({})))], [200, 401]);
        let fetched = Fetched { jwks: Some(a.jwks().into()), error: None };
        let keys = Keys([(uri.to_owned(), fetched)].into());
        assert_eq!(status(&listener(&objects, &keys, client), &a.token(json!({}))), 200);
    }
}

/// Gives out keys over plain HTTP, until it is to be away.
fn serve(says: Arc<Mutex<Option<String>>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), Some(body)) = (stream, says.lock().unwrap().clone()) else { continue };
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    port
}

#[test]
fn proxies_check_tokens_with_keys_that_the_control_plane_fetches() {
    let mut mesh = Mesh::start(User::Same).unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    let (issuer, forger) = (Issuer::new("https://login.example"), Issuer::new("https://login.example"));
    let says = Arc::new(Mutex::new(None));
    let port = serve(says.clone());
    let curl = |args: &[&str]| mesh_curl(&mesh, args);
    assert_eq!(curl(&[]).0, "200");
    let rules = json!({
        "targetRefs": [{"kind": "Service", "name": "reviews"}],
        "jwtRules": [{
            "issuer": issuer.name, "audiences": ["reviews"], "jwksUri": format!("http://127.0.0.1:{port}/keys"),
            "outputClaimToHeaders": [{"header": "x-user", "claim": "sub"}],
        }],
    });
    mesh.apply(&object("RequestAuthentication", "default/login", &rules)).unwrap();
    let bearer = |token: &str| format!("authorization: Bearer {token}");
    let good = bearer(&issuer.token(json!({"aud": "reviews"})));
    let made_up = "x-user: admin";

    // There are no keys yet: nobody's token is good, and who has none is nobody.
    assert_eq!(curl(&["-H", &good]).0, "401");
    let (status, seen) = curl(&["-H", made_up]);
    assert_eq!((status.as_str(), &seen["headers"]["x-user"]), ("200", &Value::Null));
    let condition = mesh.meshctl(&["get", "requestauthentication", "login", "-o", "yaml"]).unwrap();
    assert!(condition.contains("KeysNotFetched"), "{condition}");

    *says.lock().unwrap() = Some(issuer.jwks());
    eventually(Duration::from_secs(60), || {
        let (status, seen) = curl(&["-H", &good, "-H", made_up]);
        anyhow::ensure!(status == "200", "{status}");
        anyhow::ensure!(seen["headers"]["x-user"] == "ann" && seen["headers"]["authorization"].is_null(), "{seen}");
        Ok(())
    })
    .unwrap();
    let expired = issuer.token(json!({"aud": "reviews", "exp": now() - 3600.0}));
    let unsigned = {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = json!({"iss": issuer.name, "sub": "ann", "aud": "reviews"});
        format!("{}.{}.", part(json!({"alg": "none"})), part(claims))
    };
    for (why, token) in [
        ("expired", expired.as_str()),
        ("none", &unsigned),
        ("a forger's", &forger.token(json!({"aud": "reviews"}))),
        ("for others", &issuer.token(json!({"aud": "ratings"}))),
        ("rubbish", "rubbish"),
    ] {
        assert_eq!(curl(&["-H", &bearer(token)]).0, "401", "{why}");
    }
    assert_eq!(curl(&["-H", &good, "-H", &bearer("a.b.c")]).0, "401", "two tokens");
    let challenged = mesh.curl("web", &["-i", "-H", &bearer(&expired), "http://reviews:9080/"]).unwrap();
    let challenge = "www-authenticate: Bearer realm=\"reviews:9080\", error=\"invalid_token\"";
    assert!(challenged.to_lowercase().contains(&challenge.to_lowercase()), "{challenged}");
    let grpc = ["-i", "-X", "POST", "--http2-prior-knowledge", "-H", "content-type: application/grpc"];
    let args = [&grpc[..], &["-H", "authorization: Bearer x", "http://reviews:9080/a.B/C"]].concat();
    let refused = mesh.curl("web", &args).unwrap();
    assert!(refused.contains("grpc-status: 16"), "{refused}");

    // A policy demands one.
    let policy = json!({
        "targetRefs": [{"kind": "Service", "name": "reviews"}],
        "rules": [{"from": [{"requestPrincipals": [format!("{}/*", issuer.name)], "claims": [{"path": ["groups"], "values": ["editors"]}]}]}],
    });
    mesh.apply(&object("AuthorizationPolicy", "default/editors", &policy)).unwrap();
    let editor = issuer.token(json!({"aud": "reviews", "groups": ["editors"]}));
    assert_eq!([curl(&[]).0, curl(&["-H", &good]).0, curl(&["-H", &bearer(&editor)]).0], ["403", "403", "200"]);

    // And what is said before is what happens.
    let file = mesh.folder().join("token");
    let check = |token: &str| {
        std::fs::write(&file, format!("{token}\n")).unwrap();
        let args = ["authz", "check", "--from", "web", "--to", "reviews", "--jwt", file.to_str().unwrap()];
        mesh.meshctl(&args).unwrap()
    };
    let said = check(&editor);
    assert!(said.contains("ALLOWED") && said.contains("default/editors[0]"), "{said}");
    assert!(check(&expired).contains("401: the token has expired"));
    assert!(check(&issuer.token(json!({"aud": "reviews"}))).contains("DENIED"));

    // The issuer goes away, and the control plane is restarted: what was good stays so.
    *says.lock().unwrap() = None;
    mesh.control.take();
    mesh.start_control().unwrap();
    mesh.apply(&object("AuthorizationPolicy", "default/editors", &json!({"rules": [{}]}))).unwrap();
    eventually(Duration::from_secs(30), || {
        let status = mesh_curl(&mesh, &["-H", &good]).0;
        anyhow::ensure!(status == "200", "{status}");
        Ok(())
    })
    .unwrap();

    // Nobody wrote a token down.
    let (payload, expired) = (editor.split('.').nth(1).unwrap(), expired.split('.').nth(1).unwrap());
    for entry in std::fs::read_dir(mesh.logs()).unwrap() {
        let text = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        assert!(!text.contains(payload) && !text.contains(expired));
    }
}

/// The status, and what the application saw if it answered.
fn mesh_curl(mesh: &Mesh, args: &[&str]) -> (String, Value) {
    let all = [args, &["-w", "\n%{http_code}", "http://reviews:9080/"]].concat();
    let output = mesh.curl("web", &all).unwrap();
    let (body, status) = output.trim_end().rsplit_once('\n').unwrap_or(("", output.trim()));
    (status.to_owned(), serde_json::from_str(body.trim()).unwrap_or_default())
}
