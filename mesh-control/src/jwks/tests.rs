use std::sync::Mutex;
use std::time::Instant;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_common::resource::parse_yaml;
use rcgen::{CertificateParams, KeyPair as CertificateKey};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

fn jwks() -> String {
    let x = URL_SAFE_NO_PAD.encode(Ed25519KeyPair::generate().unwrap().public_key());
    format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","x":"{x}"}}]}}"#)
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Says the same to everybody, until it is to say something else.
struct Issuer {
    uri: String,
    says: Arc<Mutex<String>>,
}

impl Issuer {
    async fn start(says: String, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let says = Arc::new(Mutex::new(says));
        let uri = format!("{scheme}://localhost:{port}/keys?a=b")
            .replace("localhost", if tls.is_some() { "localhost" } else { "127.0.0.1" });
        let said = says.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let text = said.lock().unwrap().clone();
                match &tls {
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            tokio::spawn(say(stream, text));
                        }
                    }
                    None => _ = tokio::spawn(say(stream, text)),
                }
            }
        });
        Self { uri, says }
    }

    fn say(&self, text: String) {
        *self.says.lock().unwrap() = text;
    }

    fn objects(&self, revision: u64) -> Arc<Objects> {
        let text = format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: a}}\nspec: {{jwtRules: [{{issuer: a, jwksUri: \"{}\"}}]}}\n",
            self.uri
        );
        let objects = parse_yaml("test", &text).unwrap().into_iter().map(|it| (it.key(), Arc::new(it))).collect();
        Arc::new(Objects { revision, objects, committed_at: Instant::now(), seen: Default::default(), accounts: None })
    }
}

async fn say<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO, text: String) {
    let mut asked = [0; 1024];
    let read = io.read(&mut asked).await.unwrap_or_default();
    assert!(asked[..read].starts_with(b"GET /keys?a=b HTTP/1.1\r\n"));
    if text == "nothing" {
        std::future::pending::<()>().await;
    }
    let _ = io.write_all(text.as_bytes()).await;
    let _ = io.shutdown().await;
}

use tokio::io::{AsyncRead, AsyncWrite};

#[tokio::test]
async fn a_good_answer_is_taken_and_any_other_refused_without_telling_what_it_was() {
    let fetcher = Fetcher::default();
    let keys = jwks();
    let issuer = Issuer::start(answer("200 OK", &keys), None).await;
    let fetched = fetcher.fetch(&issuer.uri).await.unwrap();
    assert_eq!(fetched, mesh_common::jwt::Jwks::parse(&keys).unwrap().canonical());
    for (says, expected) in [
        (answer("404 Not Found", &keys), "the answer is 404"),
        (answer("302 Found\r\nlocation: http://127.0.0.1/", ""), "the answer is 302"),
        (answer("200 OK", "secret-of-another-service"), "not a JWKS"),
        (answer("200 OK", r#"{"keys":[]}"#), "no key"),
        (answer("200 OK", r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#), "symmetric"),
        (answer("200 OK", &" ".repeat(70 << 10)), "longer than"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_owned(), "broke off"),
        (format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(20 << 10)), "HTTP"),
        ("SSH-2.0\r\n".to_owned(), "HTTP"),
        (String::new(), "HTTP"),
    ] {
        issuer.say(says);
        let error = fetcher.fetch(&issuer.uri).await.unwrap_err();
        assert!(error.contains(expected) && !error.contains("secret-of"), "{expected}: {error}");
    }
    issuer.say("nothing".to_owned());
    assert_eq!(fetcher.fetch(&issuer.uri).await, Err("it took too long".to_owned()));
}

#[tokio::test]
async fn nothing_is_asked_of_where_secrets_are_or_without_tls() {
    let fetcher = Fetcher::default();
    for uri in [
        "http://issuer.example/k",
        "ftp://issuer.example/k",
        "https://169.254.169.254/latest",
        "https://[fe80::1]/",
        "https://0.0.0.0/",
        "https://[::ffff:169.254.169.254]/",
    ] {
        let error = fetcher.fetch(uri).await.unwrap_err();
        assert!(error.contains("https") || error.contains("no address that may be asked"), "{uri}: {error}");
    }
}

#[tokio::test]
async fn the_issuers_certificate_is_checked() {
    let key = CertificateKey::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let der = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certificate.der().clone()], der).unwrap();
    let issuer = Issuer::start(answer("200 OK", &jwks()), Some(TlsAcceptor::from(Arc::new(config)))).await;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let fetcher = Fetcher::with_roots(roots);
    fetcher.fetch(&issuer.uri).await.unwrap();
    let elsewhere = issuer.uri.replace("localhost", "127.0.0.1");
    assert!(fetcher.fetch(&elsewhere).await.unwrap_err().starts_with("TLS"), "it is not for that name");
    let stranger = Fetcher::with_roots(RootCertStore::empty());
    assert!(stranger.fetch(&issuer.uri).await.unwrap_err().starts_with("TLS"));
}

#[tokio::test]
async fn bad_keys_never_replace_good_ones_and_new_ones_do() {
    let (one, two) = (jwks(), jwks());
    let form = |text: &str| Some(mesh_common::jwt::Jwks::parse(text).unwrap().canonical());
    let issuer = Issuer::start(answer("503 Away", ""), None).await;
    let fetcher = Arc::new(Fetcher::default());
    let nothing = first(&issuer.objects(1), Keys::default(), &fetcher).await;
    let of = |keys: &Keys| keys.0.get(&issuer.uri).cloned().unwrap();
    assert_eq!(of(&nothing), Fetched { jwks: None, error: Some("the answer is 503".to_owned()) });
    issuer.say(answer("200 OK", &one));
    let mut keys = first(&issuer.objects(1), Keys::default(), &fetcher).await;
    assert_eq!(of(&keys).jwks.as_deref().map(str::to_owned), form(&one));
    for (says, expected) in
        [(answer("200 OK", "{}"), &one), (answer("503 Away", ""), &one), (answer("200 OK", &two), &two)]
    {
        issuer.say(says);
        take(&mut keys, issuer.uri.clone(), fetcher.fetch(&issuer.uri).await);
        assert_eq!(of(&keys).jwks.as_deref().map(str::to_owned), form(expected));
    }
    // What was kept is there at once, also while the issuer is away.
    issuer.say(answer("503 Away", ""));
    assert_eq!(first(&issuer.objects(1), keys.clone(), &fetcher).await, keys);
}

#[tokio::test]
async fn keys_come_with_the_object_that_names_them_and_go_with_it() {
    let issuer = Issuer::start(answer("200 OK", &jwks()), None).await;
    let none = Arc::new(Objects {
        revision: 1,
        objects: Default::default(),
        committed_at: Instant::now(),
        seen: Default::default(),
        accounts: None,
    });
    let (objects, watched) = watch::channel(none.clone());
    let (sender, mut keys) = watch::channel(Arc::new(Keys::default()));
    let saved = Arc::new(Mutex::new(Vec::new()));
    let save = {
        let saved = saved.clone();
        move |keys: &Keys| saved.lock().unwrap().push(keys.0.len())
    };
    let task = tokio::spawn(keep(watched, sender, Arc::new(Fetcher::default()), save));
    objects.send_replace(issuer.objects(2));
    keys.changed().await.unwrap();
    assert!(keys.borrow_and_update().0[&issuer.uri].jwks.is_some());
    objects.send_replace(none);
    keys.changed().await.unwrap();
    assert_eq!(**keys.borrow(), Keys::default());
    assert_eq!(*saved.lock().unwrap(), [1, 0]);
    drop(objects);
    task.await.unwrap();
}
