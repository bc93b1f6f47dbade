use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderName;
use mesh_common::jwt::{Jwks, MAX_TOKEN_BYTES};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::{ClaimMatch, StringMatch, TokenAt, TokenPlace, ValueMatch};

const NOW: f64 = 1_000_000.0;

struct Issuer {
    name: &'static str,
    pair: EcdsaKeyPair,
}

impl Issuer {
    fn new(name: &'static str) -> Self {
        Self { name, pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap() }
    }

    fn jwks(&self) -> Jwks {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        Jwks::parse(&json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "x": x, "y": y}]}).to_string()).unwrap()
    }

    /// With the issuer and an end, unless these say something else.
    fn token(&self, claims: Value) -> String {
        let mut all = json!({"iss": self.name, "sub": "u", "exp": NOW + 300.0});
        claims.as_object().unwrap().iter().for_each(|(name, value)| all[name] = value.clone());
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "k"})), part(&all));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn provider(&self) -> JwtProvider {
        JwtProvider {
            issuer: self.name.to_owned(),
            audiences: Vec::new(),
            jwks: self.jwks(),
            forward: false,
            outputs: Vec::new(),
            words: vec!["scope".to_owned()],
            leeway: 10.0,
        }
    }
}

fn bearer() -> TokenAt {
    TokenAt::Header { name: http::header::AUTHORIZATION, prefix: "Bearer ".to_owned() }
}

fn authn(providers: Vec<JwtProvider>, places: Vec<(TokenAt, Vec<usize>)>) -> JwtAuthn {
    let places = places.into_iter().map(|(at, providers)| TokenPlace { at, providers }).collect();
    let outputs = providers.iter().flat_map(|it| it.outputs.iter().map(|(name, _)| name.clone()));
    JwtAuthn { claim_headers: outputs.collect(), providers, places, cache: Cache::default() }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    pairs.iter().map(pair).collect()
}

fn sub(verified: Result<Option<Arc<Verified>>, Refused>) -> Result<Option<String>, Refused> {
    verified.map(|it| it.and_then(|it| Some(it.claims.get("sub")?.as_str()?.to_owned())))
}

fn with_bearer(authn: &JwtAuthn, token: &str) -> Result<Option<String>, Refused> {
    sub(check(authn, &headers(&[("authorization", &format!("Bearer {token}"))]), None, NOW))
}

#[test]
fn no_token_is_nobody_and_a_good_one_somebody() {
    let issuer = Issuer::new("https://a");
    let authn = authn(vec![issuer.provider()], vec![(bearer(), vec![0])]);
    assert_eq!(sub(check(&authn, &HeaderMap::new(), None, NOW)), Ok(None));
    for other in ["Basic dTpw", "Bearer", "Bearer ", "Digest a.b.c"] {
        assert_eq!(sub(check(&authn, &headers(&[("authorization", other)]), None, NOW)), Ok(None), "{other}");
    }
    let token = issuer.token(json!({}));
    assert_eq!(with_bearer(&authn, &token), Ok(Some("u".to_owned())));
    for scheme in ["bearer", "BEARER", "Bearer "] {
        let headers = headers(&[("authorization", &format!("{scheme} {token}"))]);
        assert_eq!(sub(check(&authn, &headers, None, NOW)), Ok(Some("u".to_owned())), "{scheme}");
    }
}

#[test]
fn attack_expired_not_yet_valid_and_for_others() {
    let issuer = Issuer::new("https://a");
    let provider = JwtProvider { audiences: vec!["shop".to_owned(), "web".to_owned()], ..issuer.provider() };
    let authn = authn(vec![provider], vec![(bearer(), vec![0])]);
    let good = Ok(Some("u".to_owned()));
    for (claims, expected) in [
        (json!({"aud": "shop"}), good.clone()),
        (json!({"aud": ["x", "web"]}), good.clone()),
        (json!({}), Err(Refused::Audience)),
        (json!({"aud": "shops"}), Err(Refused::Audience)),
        (json!({"aud": []}), Err(Refused::Audience)),
        (json!({"aud": {"shop": 1}}), Err(Refused::Audience)),
        (json!({"aud": "shop", "exp": NOW - 9.0}), good.clone()),
        (json!({"aud": "shop", "exp": NOW - 10.0}), Err(Refused::Expired)),
        (json!({"aud": "shop", "exp": -1e300}), Err(Refused::Expired)),
        (json!({"aud": "shop", "nbf": NOW + 10.0}), good.clone()),
        (json!({"aud": "shop", "nbf": NOW + 11.0}), Err(Refused::NotYetValid)),
        (json!({"aud": "shop", "exp": "never"}), Err(Refused::Malformed("a time in it is no number"))),
        (json!({"aud": "shop", "exp": null}), Err(Refused::Malformed("a time in it is no number"))),
        (json!({"aud": "shop", "nbf": []}), Err(Refused::Malformed("a time in it is no number"))),
        (json!({"aud": "shop", "iss": "https://b"}), Err(Refused::Issuer)),
    ] {
        let token = issuer.token(claims.clone());
        assert_eq!(with_bearer(&authn, &token), expected, "{claims}");
    }
}

#[test]
fn attack_key_of_another_issuer() {
    let (a, b) = (Issuer::new("https://a"), Issuer::new("https://b"));
    let authn = authn(vec![a.provider(), b.provider()], vec![(bearer(), vec![0, 1])]);
    assert_eq!(with_bearer(&authn, &a.token(json!({}))), Ok(Some("u".to_owned())));
    assert_eq!(with_bearer(&authn, &b.token(json!({}))), Ok(Some("u".to_owned())));
    // Both are trusted, and neither speaks for the other.
    assert_eq!(with_bearer(&authn, &b.token(json!({"iss": "https://a"}))), Err(Refused::Signature));
    assert_eq!(with_bearer(&authn, &a.token(json!({"iss": "https://c"}))), Err(Refused::Issuer));
}

#[test]
fn without_keys_every_token_of_the_issuer_is_refused() {
    let issuer = Issuer::new("https://a");
    let provider = JwtProvider { jwks: Jwks::default(), ..issuer.provider() };
    let authn = authn(vec![provider], vec![(bearer(), vec![0])]);
    assert_eq!(with_bearer(&authn, &issuer.token(json!({}))), Err(Refused::NoKeys));
    assert_eq!(sub(check(&authn, &HeaderMap::new(), None, NOW)), Ok(None));
}

fn everywhere() -> Vec<(TokenAt, Vec<usize>)> {
    let header = |name: &'static str, prefix: &str| TokenAt::Header {
        name: HeaderName::from_static(name),
        prefix: prefix.to_owned(),
    };
    vec![
        (bearer(), vec![0]),
        (header("x-jwt", "jwt:"), vec![0]),
        (header("x-jwt", ""), vec![0]),
        (TokenAt::Param("t".to_owned()), vec![0]),
        (TokenAt::Cookie("session".to_owned()), vec![0]),
    ]
}

#[test]
fn tokens_are_found_in_headers_parameters_and_cookies_and_taken_out() {
    let issuer = Issuer::new("https://a");
    let authn = authn(vec![issuer.provider()], everywhere());
    let token = issuer.token(json!({}));
    let cookie = format!("a=1; session={token}; b=2");
    let quoted = format!("session=\"{token}\"");
    for (given, target, left, left_target) in [
        (vec![("authorization", format!("Bearer {token}"))], "/x?a=1", vec![], "/x?a=1"),
        (vec![("x-jwt", format!("jwt: {token}"))], "/x", vec![], "/x"),
        (vec![("x-jwt", token.clone())], "/x", vec![], "/x"),
        (vec![], "/x?a=1&t=TOKEN&b=2", vec![], "/x?a=1&b=2"),
        (vec![], "/x?t=TOKEN", vec![], "/x"),
        (vec![], "/x?%74=TOKEN", vec![], "/x"),
        (vec![], "http://h/x?t=TOKEN", vec![], "http://h/x"),
        (vec![("cookie", cookie)], "/", vec![("cookie", "a=1; b=2")], "/"),
        (vec![("cookie", quoted)], "/", vec![], "/"),
        // The same in two places is one.
        (vec![("authorization", format!("Bearer {token}"))], "/?t=TOKEN", vec![], "/"),
        (
            vec![("authorization", "Basic x".to_owned()), ("x-jwt", token.clone())],
            "/",
            vec![("authorization", "Basic x")],
            "/",
        ),
    ] {
        let pairs: Vec<_> = given.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (mut map, mut uri) = (headers(&pairs), target.replace("TOKEN", &token).parse::<Uri>().unwrap());
        assert_eq!(sub(admit(&authn, &mut map, &mut uri, NOW)), Ok(Some("u".to_owned())), "{target}");
        assert_eq!((map, uri.to_string()), (headers(&left), left_target.to_owned()));
    }
    for (given, target) in [
        (vec![("cookie", "session=")], "/"),
        (vec![], "/?t="),
        (vec![], "/?t"),
        (vec![("cookie", "sessions=x; xsession=y")], "/?tt=a"),
    ] {
        let query = target.parse::<Uri>().unwrap();
        assert_eq!(sub(check(&authn, &headers(&given), query.query(), NOW)), Ok(None), "{given:?} {target}");
    }
}

#[test]
fn attack_two_tokens() {
    let issuer = Issuer::new("https://a");
    let authn = authn(vec![issuer.provider()], everywhere());
    let (good, other) = (issuer.token(json!({})), issuer.token(json!({"sub": "v"})));
    let (bearer, forged) = (format!("Bearer {good}"), format!("Bearer {good}x"));
    for (given, query) in [
        (vec![("authorization", bearer.clone()), ("authorization", format!("Bearer {other}"))], None),
        (vec![("authorization", bearer.clone()), ("authorization", forged.clone())], None),
        (vec![("authorization", forged), ("authorization", bearer.clone())], None),
        (vec![("authorization", bearer.clone()), ("x-jwt", other.clone())], None),
        (vec![("authorization", bearer.clone())], Some(format!("t={other}"))),
        (vec![], Some(format!("t={good}&t={other}"))),
        (vec![("cookie", format!("session={good}; session={other}"))], None),
        (vec![("cookie", format!("session={good}")), ("cookie", format!("session={other}"))], None),
    ] {
        let pairs: Vec<_> = given.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(check(&authn, &headers(&pairs), query.as_deref(), NOW), Err(Refused::Several));
    }
    let list = format!("Bearer {good}, Bearer {good}");
    assert!(check(&authn, &headers(&[("authorization", &list)]), None, NOW).is_err());
}

#[test]
fn a_rule_takes_tokens_only_from_where_it_looks() {
    let (a, b) = (Issuer::new("https://a"), Issuer::new("https://b"));
    let places = vec![(bearer(), vec![0]), (TokenAt::Param("t".to_owned()), vec![1])];
    let authn = authn(vec![a.provider(), b.provider()], places);
    assert_eq!(with_bearer(&authn, &b.token(json!({}))), Err(Refused::Place));
    let query = format!("t={}", b.token(json!({})));
    assert_eq!(sub(check(&authn, &HeaderMap::new(), Some(&query), NOW)), Ok(Some("u".to_owned())));
}

#[test]
fn attack_claims_that_the_client_made_up() {
    let issuer = Issuer::new("https://a");
    let way = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let output = |name: &'static str, claim| (HeaderName::from_static(name), way(claim));
    let outputs =
        vec![output("x-user", "sub"), output("x-role", "realm.role"), output("x-age", "age"), output("x-list", "list")];
    let provider = JwtProvider { outputs, forward: true, ..issuer.provider() };
    let authn = authn(vec![provider], vec![(bearer(), vec![0])]);
    let made_up = [("x-user", "admin"), ("x-user", "root"), ("x-role", "admin"), ("x-age", "1"), ("x-list", "y")];
    let mut map = headers(&made_up);
    assert_eq!(sub(admit(&authn, &mut map, &mut Uri::from_static("/"), NOW)), Ok(None));
    assert!(map.is_empty(), "{map:?}");
    let claims = json!({"realm": {"role": "user"}, "age": 7, "list": ["a"]});
    let token = format!("Bearer {}", issuer.token(claims));
    let mut map = headers(&made_up);
    map.insert("authorization", token.parse().unwrap());
    admit(&authn, &mut map, &mut Uri::from_static("/"), NOW).unwrap();
    assert_eq!(map, headers(&[("x-user", "u"), ("x-role", "user"), ("x-age", "7"), ("authorization", &token)]));
    // What would end a header's line is left out.
    let token = format!("Bearer {}", issuer.token(json!({"sub": "u\r\nx-role: admin"})));
    let mut map = headers(&[("authorization", &token), ("x-user", "admin")]);
    admit(&authn, &mut map, &mut Uri::from_static("/"), NOW).unwrap();
    assert_eq!(map, headers(&[("authorization", &token)]));
}

#[test]
fn a_remembered_token_still_expires_and_a_forged_one_is_never_remembered() {
    let issuer = Issuer::new("https://a");
    let authn = authn(vec![issuer.provider()], vec![(bearer(), vec![0])]);
    let token = issuer.token(json!({}));
    let first = verify(&authn, &token, NOW).unwrap();
    assert!(Arc::ptr_eq(&first, &verify(&authn, &token, NOW).unwrap()), "it was not checked twice");
    assert_eq!(verify(&authn, &token, NOW + 310.0), Err(Refused::Expired));
    let forged = format!("{}A", &token[..token.len() - 1]);
    for _ in 0..2 {
        assert!(forged == token || verify(&authn, &forged, NOW).is_err());
    }
    assert_eq!(authn.cache.len(), 1);
    let long = issuer.token(json!({"x": "a".repeat(5000)}));
    assert!(long.len() < MAX_TOKEN_BYTES && verify(&authn, &long, NOW).is_ok());
    assert_eq!(authn.cache.len(), 1);
    for i in 0..2000 {
        authn.cache.keep(Cache::key(&i.to_string()), 1, &first);
    }
    assert!(authn.cache.len() <= 512, "{}", authn.cache.len());
}

#[test]
fn claims_are_what_a_policy_asks_for_or_not_certain() {
    let text = |text: &str| ValueMatch::Text(StringMatch::Exact(text.to_owned()));
    let either = |it: &str| ValueMatch::OneOf(vec![text(it), ValueMatch::Entry(Box::new(text(it)))]);
    let claims = json!({
        "sub": "u", "groups": ["a", "b"], "mixed": ["a", {"b": 1}], "none": [], "null": null,
        "realm": {"roles": ["x"]}, "age": 7, "ok": true, "object": {}, "a.b": "dot",
    });
    let Value::Object(claims) = claims else { unreachable!() };
    for (path, value, expected) in [
        (&["sub"][..], either("u"), Some(true)),
        (&["sub"], either("v"), Some(false)),
        (&["groups"], either("b"), Some(true)),
        (&["groups"], either("c"), Some(false)),
        (&["mixed"], either("a"), Some(true)),
        (&["mixed"], either("c"), None),
        (&["none"], either("a"), Some(false)),
        (&["null"], either("a"), Some(false)),
        (&["null"], ValueMatch::Present, Some(false)),
        (&["missing"], either("a"), Some(false)),
        (&["realm", "roles"], either("x"), Some(true)),
        (&["realm"], either("x"), None),
        (&["sub", "x"], either("u"), Some(false)),
        (&["a.b"], either("dot"), Some(true)),
        (&["age"], either("7"), None),
        (&["age"], ValueMatch::OneOf(vec![text("7"), ValueMatch::Number(7.0)]), Some(true)),
        (&["ok"], ValueMatch::OneOf(vec![text("true"), ValueMatch::Bool(true)]), Some(true)),
        (&["ok"], ValueMatch::Bool(false), Some(false)),
        (&["object"], ValueMatch::Present, Some(true)),
    ] {
        let matcher = ClaimMatch { path: path.iter().map(|it| (*it).to_owned()).collect(), value };
        assert_eq!(holds(&matcher, Some(&claims)), expected, "{matcher:?}");
        assert_eq!(holds(&matcher, None), Some(false), "nobody claims anything");
    }
    let mut words = json!({"scope": " read  write"}).as_object().unwrap().clone();
    claims::split_words(&mut words, &["scope".to_owned(), "permission".to_owned()]);
    assert_eq!(words, *json!({"scope": ["read", "write"]}).as_object().unwrap());
}

#[test]
fn records_have_no_tokens() {
    let issuer = Issuer::new("https://a");
    let authn = authn(vec![issuer.provider()], everywhere());
    for (target, authn, expected) in [
        ("/a?b=c", None, "/a?b=c"),
        ("/a?access_token=secret&b=c", None, "/a?b=c"),
        ("/a?acc%65ss_token=secret", None, "/a"),
        ("/a?t=secret&b=c", Some(&authn), "/a?b=c"),
    ] {
        assert_eq!(without_tokens(&target.parse().unwrap(), authn).to_string(), expected);
    }
    let token = issuer.token(json!({}));
    for refused in [verify(&authn, &format!("{token}x"), NOW), verify(&authn, &token, NOW + 1e6)] {
        let error = refused.unwrap_err().to_string();
        assert!(token.split('.').all(|part| !error.contains(part)), "{error}");
    }
}

proptest! {
    /// Whatever a client sends, nothing panics; and what nobody signed proves nothing.
    #[test]
    fn no_request_proves_anything_by_chance(
        header in "[ -~]{0,60}", cookie in "[ -~]{0,60}", query in "[a-z%0-9=&._-]{0,60}"
    ) {
        let authn = authn(vec![Issuer::new("https://a").provider()], everywhere());
        let mut map = headers(&[("authorization", &header), ("x-jwt", &header), ("cookie", &cookie)]);
        let Ok(mut uri) = format!("/?{query}").parse::<Uri>() else { return Ok(()) };
        prop_assert!(matches!(admit(&authn, &mut map, &mut uri, NOW), Ok(None) | Err(_)));
        without_tokens(&uri, Some(&authn));
    }
}
