use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaEncoding,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

enum Pair {
    Rsa(RsaPair),
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Pair {
    fn rsa(size: KeySize) -> Self {
        Self::Rsa(RsaPair::generate(size).unwrap())
    }

    fn ec(algorithm: &'static EcdsaSigningAlgorithm, curve: &'static str) -> Self {
        Self::Ec(EcdsaKeyPair::generate(algorithm).unwrap(), curve)
    }

    fn p256() -> Self {
        Self::ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256")
    }

    fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Rsa(pair) => {
                let public = pair.public_key();
                let (n, e) = (
                    public.modulus().big_endian_without_leading_zero(),
                    public.exponent().big_endian_without_leading_zero(),
                );
                json!({"kty": "RSA", "kid": kid, "use": "sig", "n": b64(n), "e": b64(e)})
            }
            Self::Ec(pair, curve) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "kid": kid, "crv": curve, "x": b64(x), "y": b64(y)})
            }
            Self::Ed(pair) => json!({"kty": "OKP", "kid": kid, "crv": "Ed25519", "x": b64(pair.public_key())}),
        }
    }

    fn sign(&self, algorithm: &str, signed: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair) => {
                let encoding: &'static dyn RsaEncoding = match algorithm {
                    "RS256" => &RSA_PKCS1_SHA256,
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    _ => &RSA_PSS_SHA512,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, signed, &mut signature).unwrap();
                signature
            }
            Self::Ec(pair, _) => pair.sign(&random, signed).unwrap().as_ref().to_vec(),
            Self::Ed(pair) => pair.sign(signed).as_ref().to_vec(),
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let signature = self.sign(header["alg"].as_str().unwrap_or_default(), signed.as_bytes());
        format!("{signed}.{}", b64(signature))
    }
}

fn set(keys: &[Value]) -> Jwks {
    Jwks::parse(&json!({ "keys": keys }).to_string()).unwrap()
}

fn verify(token: &str, keys: &Jwks) -> Result<Value, Refused> {
    Token::parse(token)?.verify(keys).map(Value::Object)
}

fn claims() -> Value {
    json!({"iss": "https://issuer", "sub": "u"})
}

#[test]
fn each_algorithm_proves_and_a_changed_byte_does_not() {
    let rsa = Pair::rsa(KeySize::Rsa2048);
    let p384 = Pair::ec(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384");
    let (p256, ed) = (Pair::p256(), Pair::Ed(Ed25519KeyPair::generate().unwrap()));
    let of_rsa = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"].map(|algorithm| (&rsa, algorithm));
    let all = of_rsa.into_iter().chain([(&p256, "ES256"), (&p384, "ES384"), (&ed, "EdDSA")]);
    for (pair, algorithm) in all {
        let keys = set(&[pair.jwk("k")]);
        let token = pair.token(&json!({"alg": algorithm, "kid": "k"}), &claims());
        assert_eq!(verify(&token, &keys), Ok(claims()), "{algorithm}");
        // What was kept of the keys is enough.
        assert_eq!(verify(&token, &Jwks::parse(&keys.canonical()).unwrap()), Ok(claims()), "{algorithm}");
        let parts: Vec<&str> = token.split('.').collect();
        let forged = b64(json!({"iss": "https://issuer", "sub": "admin"}).to_string());
        let tampered = format!("{}.{forged}.{}", parts[0], parts[2]);
        assert_eq!(verify(&tampered, &keys), Err(Refused::Signature), "{algorithm}");
        assert_eq!(verify(&format!("{}.{}.", parts[0], parts[1]), &keys), Err(Refused::Signature), "{algorithm}");
    }
}

#[test]
fn attack_alg_none() {
    let pair = Pair::p256();
    let keys = set(&[pair.jwk("k")]);
    for algorithm in ["none", "None", "NONE", "nOnE", "", "HS256"] {
        let unsigned = format!("{}.{}.", b64(json!({"alg": algorithm}).to_string()), b64(claims().to_string()));
        assert_eq!(verify(&unsigned, &keys), Err(Refused::Algorithm), "{algorithm}");
        assert_eq!(verify(&format!("{unsigned}AA"), &keys), Err(Refused::Algorithm), "{algorithm}");
    }
    let token = pair.token(&json!({"alg": "ES256"}), &claims());
    let payload = token.split('.').nth(1).unwrap();
    assert!(matches!(verify(payload, &keys), Err(Refused::Malformed(_))));
}

/// A secret shared with everybody is no secret: HMAC with the issuer's public key as its key.
#[test]
fn attack_algorithm_confusion() {
    let rsa = Pair::rsa(KeySize::Rsa2048);
    let jwk = rsa.jwk("k");
    let keys = set(std::slice::from_ref(&jwk));
    let Pair::Rsa(pair) = &rsa else { unreachable!() };
    for secret in [pair.public_key().as_ref().to_vec(), jwk.to_string().into_bytes(), keys.canonical().into_bytes()] {
        let signed = format!("{}.{}", b64(json!({"alg": "HS256", "kid": "k"}).to_string()), b64(claims().to_string()));
        let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret);
        let tag = aws_lc_rs::hmac::sign(&secret, signed.as_bytes());
        assert_eq!(verify(&format!("{signed}.{}", b64(tag)), &keys), Err(Refused::Algorithm));
    }
    // A key does what its kind does, and what its `alg` says.
    let ed = Pair::Ed(Ed25519KeyPair::generate().unwrap());
    let (p256, p384) = (Pair::p256(), Pair::ec(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"));
    for (pair, wrong) in
        [(&rsa, "ES256"), (&p256, "RS256"), (&p256, "EdDSA"), (&p256, "ES384"), (&p384, "ES256"), (&ed, "ES256")]
    {
        let token = pair.token(&json!({"alg": wrong, "kid": "k"}), &claims());
        assert_eq!(verify(&token, &set(&[pair.jwk("k")])), Err(Refused::UnknownKey), "{wrong}");
    }
    let mut only = jwk.clone();
    only["alg"] = "PS256".into();
    let token = rsa.token(&json!({"alg": "RS256", "kid": "k"}), &claims());
    assert_eq!(verify(&token, &set(&[only])), Err(Refused::UnknownKey));
    // One of the two with the other's signature.
    let token = rsa.token(&json!({"alg": "RS256", "kid": "k"}), &claims());
    let parts: Vec<&str> = token.split('.').collect();
    let header = b64(json!({"alg": "PS256", "kid": "k"}).to_string());
    assert_eq!(verify(&format!("{header}.{}.{}", parts[1], parts[2]), &keys), Err(Refused::Signature));
}

#[test]
fn attack_jwks_of_another_issuer() {
    let (own, other) = (Pair::p256(), Pair::p256());
    let keys = set(&[own.jwk("k")]);
    // With the name of the right key, with another's, and with none.
    assert_eq!(verify(&other.token(&json!({"alg": "ES256", "kid": "k"}), &claims()), &keys), Err(Refused::Signature));
    assert_eq!(verify(&other.token(&json!({"alg": "ES256", "kid": "x"}), &claims()), &keys), Err(Refused::UnknownKey));
    assert_eq!(verify(&other.token(&json!({"alg": "ES256"}), &claims()), &keys), Err(Refused::Signature));
    // What the token says about where its key is counts for nothing.
    let header = json!({"alg": "ES256", "jwk": other.jwk("k"), "jku": "https://evil/jwks", "x5u": "https://evil"});
    assert_eq!(verify(&other.token(&header, &claims()), &keys), Err(Refused::Signature));
    assert_eq!(verify(&own.token(&json!({"alg": "ES256", "kid": "x"}), &claims()), &keys), Err(Refused::UnknownKey));
}

#[test]
fn a_key_is_found_by_its_name_or_tried() {
    let (old, new) = (Pair::p256(), Pair::p256());
    let keys = set(&[old.jwk("old"), new.jwk("new")]);
    for (pair, kid) in [(&old, "old"), (&new, "new")] {
        assert!(verify(&pair.token(&json!({"alg": "ES256", "kid": kid}), &claims()), &keys).is_ok());
        assert!(verify(&pair.token(&json!({"alg": "ES256"}), &claims()), &keys).is_ok());
    }
    assert_eq!(verify(&old.token(&json!({"alg": "ES256", "kid": "new"}), &claims()), &keys), Err(Refused::Signature));
    assert_eq!(verify(&old.token(&json!({"alg": "ES256"}), &claims()), &Jwks::default()), Err(Refused::NoKeys));
}

#[test]
fn attack_headers_and_forms_that_mean_two_things() {
    let pair = Pair::p256();
    let keys = set(&[pair.jwk("k")]);
    let critical = json!({"alg": "ES256", "crit": ["b64"], "b64": false});
    assert_eq!(verify(&pair.token(&critical, &claims()), &keys), Err(Refused::Critical));
    let good = pair.token(&json!({"alg": "ES256"}), &claims());
    let parts: Vec<&str> = good.split('.').collect();
    let signed = |header: &str, payload: &str| {
        let signed = format!("{}.{}", b64(header), b64(payload));
        format!("{signed}.{}", b64(pair.sign("ES256", signed.as_bytes())))
    };
    for wrong in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        format!("{good}.x"),
        format!("{good}="),
        format!(" {good}"),
        format!("{good},{good}"),
        format!("{}.{}.{}.x.y", parts[0], parts[1], parts[2]),
        good.replace('.', "\0"),
        signed(r#"{"alg":"ES256","alg":"none"}"#, &claims().to_string()),
        signed(r#"{"alg":"ES256","kid":7}"#, &claims().to_string()),
        signed(r#"["ES256"]"#, &claims().to_string()),
        signed(r#"{"alg":"ES256"}"#, r#"{"iss":"a","iss":"https://issuer"}"#),
        signed(r#"{"alg":"ES256"}"#, r#"{"sub":"u"}"#),
        signed(r#"{"alg":"ES256"}"#, r#"{"iss":["https://issuer"]}"#),
        signed(r#"{"alg":"ES256"}"#, "not JSON"),
    ] {
        assert!(matches!(verify(&wrong, &keys), Err(Refused::Malformed(_))), "{wrong}");
    }
    // A signature in another form than the one that is meant.
    let der = format!("{}.{}.{}", parts[0], parts[1], b64([0x30; 70]));
    assert_eq!(verify(&der, &keys), Err(Refused::Signature));
}

#[test]
fn attack_huge_tokens_and_deep_json() {
    let pair = Pair::p256();
    let keys = set(&[pair.jwk("k")]);
    let huge =
        pair.token(&json!({"alg": "ES256"}), &json!({"iss": "https://issuer", "x": "a".repeat(MAX_TOKEN_BYTES)}));
    assert_eq!(verify(&huge, &keys), Err(Refused::TooLong));
    for open in ["[", r#"{"a":"#] {
        let deep = format!(r#"{{"iss":"https://issuer","x":{}"#, open.repeat(1500));
        let signed = format!("{}.{}", b64(r#"{"alg":"ES256"}"#), b64(&deep));
        let token = format!("{signed}.{}", b64(pair.sign("ES256", signed.as_bytes())));
        assert!(matches!(verify(&token, &keys), Err(Refused::Malformed(_))), "unbalanced");
        let close = if open == "[" { "]" } else { "}" };
        let deep = format!("{}1{}}}", deep, close.repeat(1500));
        let signed = format!("{}.{}", b64(r#"{"alg":"ES256"}"#), b64(&deep));
        let token = format!("{signed}.{}", b64(pair.sign("ES256", signed.as_bytes())));
        assert!(matches!(verify(&token, &keys), Err(Refused::Malformed(_))), "signed, and too deep");
    }
}

#[test]
fn a_set_with_something_secret_or_wrong_is_refused_and_what_is_foreign_left_out() {
    let good = Pair::p256().jwk("k");
    let refused = |key: Value| Jwks::parse(&json!({"keys": [good, key]}).to_string()).map(|it| it.keys().count());
    let with = |key: &Value, name: &str, value: Value| {
        let mut key = key.clone();
        key[name] = value;
        key
    };
    let key = |what| Err(JwksError::Key(1, what));
    let secret = key("is symmetric: whoever knows it can make tokens, so it may not be published");
    assert_eq!(refused(json!({"kty": "oct", "k": "c2VjcmV0"})), secret);
    assert_eq!(refused(with(&good, "k", "c2VjcmV0".into())), secret);
    assert_eq!(refused(with(&good, "d", "AAAA".into())), key("is a private key, which may not be published"));
    assert_eq!(refused(json!({})), key("has no `kty`"));
    assert_eq!(refused(with(&good, "x", "AAAA".into())), key("is not a point of its curve"));
    assert_eq!(refused(with(&good, "x", b64([1; 32]).into())), key("is not a point of its curve"));
    assert_eq!(refused(with(&good, "y", "*".into())), key("lacks a number, or has one that is not base64url"));
    assert_eq!(refused(with(&good, "kid", 7.into())), key("has a member that should be a string"));
    for foreign in [
        with(&good, "use", "enc".into()),
        with(&good, "key_ops", json!(["deriveBits"])),
        with(&good, "alg", "ECDH-ES".into()),
        with(&good, "alg", "RS256".into()),
        with(&good, "crv", "secp256k1".into()),
        with(&good, "kty", "OKP".into()),
        json!({"kty": "AKP", "alg": "ML-DSA-44"}),
        json!({"kty": "RSA", "n": b64([0xff; 128]), "e": "AQAB"}),
    ] {
        assert_eq!(refused(foreign.clone()), Ok(1), "{foreign}");
    }
    for not_a_set in ["", "[]", "{}", r#"{"keys": {}}"#, r#"{"keys": [1]}"#, "<html>"] {
        assert_eq!(Jwks::parse(not_a_set).err(), Some(JwksError::NotASet), "{not_a_set}");
    }
    let many: Vec<_> = (0..33).map(|_| good.clone()).collect();
    assert_eq!(Jwks::parse(&json!({ "keys": many }).to_string()).err(), Some(JwksError::TooMany));
    assert_eq!(Jwks::parse(&" ".repeat(MAX_JWKS_BYTES + 1)).err(), Some(JwksError::TooLong));
    assert!(Jwks::parse(r#"{"keys": []}"#).unwrap().is_empty());
}

#[test]
fn keys_come_by_https_or_from_the_same_machine() {
    for good in [
        "https://issuer/.well-known/jwks.json",
        "https://issuer:8443",
        "https://[fd00::1]/k?x=1",
        "http://127.0.0.1:8080/k",
        "http://[::1]/k",
        "http://localhost/k",
    ] {
        assert_eq!(check_uri(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "issuer/k",
        "http://issuer/k",
        "ftp://issuer/k",
        "https://",
        "https://:80/",
        "https://a:0/",
        "https://a:x/",
        "https://u@issuer/",
        "https://issuer/#k",
        "https://issuer/ k",
        "http://localhost.evil/k",
        "http://127.0.0.1@evil/k",
    ] {
        assert!(check_uri(bad).is_err(), "{bad}");
    }
}

proptest! {
    /// Whatever comes, nothing panics, and nothing that nobody signed is taken.
    #[test]
    fn no_text_is_a_token_by_chance(text in "[A-Za-z0-9_.-]{0,200}", cut in 0_usize..300, byte in any::<u8>()) {
        let pair = Pair::p256();
        let keys = set(&[pair.jwk("k")]);
        prop_assert!(verify(&text, &keys).is_err());
        let good = pair.token(&json!({"alg": "ES256", "kid": "k"}), &claims());
        let mut damaged = good.clone().into_bytes();
        let at = cut % damaged.len();
        damaged[at] = byte;
        if let Ok(text) = String::from_utf8(damaged) {
            prop_assert!(text == good || verify(&text, &keys).is_err());
        }
    }

    #[test]
    fn no_text_breaks_the_keys(text in r#"[{}\[\]:,"a-z0-9]{0,80}"#) {
        if let Ok(keys) = Jwks::parse(&text) {
            prop_assert!(Jwks::parse(&keys.canonical()).is_ok());
        }
    }
}
