use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::*;
use crate::config::{Authorization, WeightedClusters};
use crate::limit::RateLimits;
use crate::listen::{InFlight, Phase, Settings};
use crate::snapshot::Store;
use crate::telemetry::{Telemetry, TelemetryOptions};
use crate::tls::Tls;
use crate::upstream::Upstreams;

fn context() -> Context {
    let (store, tls) = (Store::of([]), Tls::default());
    Context {
        upstreams: Upstreams::new(store.clone(), tls.clone()),
        store,
        tls,
        telemetry: Telemetry::new(TelemetryOptions::default()).unwrap(),
        settings: Settings::default(),
        phase: watch::channel(Phase::Serving).1,
        in_flight: InFlight::default(),
        rate_limits: RateLimits::default(),
        occupancy: Default::default(),
        overload: Default::default(),
        learned: Default::default(),
    }
}

fn downstream(original_destination: SocketAddr) -> Downstream {
    Downstream::new("127.0.0.1:1".parse().unwrap(), original_destination, Direction::Outbound)
}

fn rule(kind: FaultKind) -> FaultRule {
    FaultRule {
        name: "f".into(),
        parts_per_million: 1_000_000,
        kind,
        expires_unix_ms: 0,
        headers: Arc::default(),
        share: Default::default(),
    }
}

/// A client, and the proxy's end of its connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

fn has(ctx: &Context, line: &str) -> bool {
    ctx.telemetry.render().lines().any(|it| it.contains(line))
}

#[tokio::test]
async fn passthrough_reaches_the_original_destination() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let (mut client, io) = pair().await;
    let ctx = Arc::new(context());
    let proxying = {
        let ctx = ctx.clone();
        tokio::spawn(async move { passthrough(io, &downstream(address), &ctx).await })
    };
    client.write_all(b"ping").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut accepted, _) = server.accept().await.unwrap();
    let mut question = vec![];
    accepted.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"ping");
    accepted.write_all(b"pong!").await.unwrap();
    drop(accepted);
    let mut answer = vec![];
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"pong!");
    proxying.await.unwrap();
    let text = ctx.telemetry.render();
    let line = text.lines().find(|it| it.starts_with("mesh_tcp_sent_bytes_total{")).unwrap();
    assert!(line.contains(r#"destination_service="passthrough""#) && line.ends_with(" 5"), "{line}");
    assert!(has(&ctx, r#"response_flags="-""#), "{text}");
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let (mut client, io) = pair().await;
    let ctx = Arc::new(context());
    let proxying = {
        let ctx = ctx.clone();
        tokio::spawn(async move { passthrough(io, &downstream(address), &ctx).await })
    };
    let (mut accepted, _) = server.accept().await.unwrap();
    client.write_all(b"?").await.unwrap();
    accepted.read_u8().await.unwrap();
    listen::reset_on_close(&accepted);
    drop(accepted);
    assert_eq!(client.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    proxying.await.unwrap();
    assert!(has(&ctx, r#"response_flags="UC""#));
}

#[tokio::test]
async fn what_cannot_be_reached_resets_the_client() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (mut client, io) = pair().await;
    let ctx = context();
    passthrough(io, &downstream(address), &ctx).await;
    assert_eq!(client.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(has(&ctx, r#"response_flags="UF""#));
}

#[tokio::test]
async fn a_reset_fault_comes_before_the_upstream() {
    let (mut client, io) = pair().await;
    let ctx = context();
    let filter = TcpProxy {
        stat_prefix: "stock.default.svc.cluster.local:7070".into(),
        authorization: Authorization::default(),
        clusters: WeightedClusters::single("c"),
        idle_timeout: Duration::ZERO,
        fault: Some(Arc::new(Fault { rules: vec![rule(FaultKind::Reset)] })),
        hash_source: false,
        limits: None,
    };
    proxy(io, &downstream("240.240.0.1:1".parse().unwrap()), &filter, None, &ctx).await;
    assert_eq!(client.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    // It counts as one of the service that was called.
    let failed = |line: &str| line.contains(r#"response_flags="FI""#);
    let counted = ctx.telemetry.render();
    let service = r#"destination_service="stock.default.svc.cluster.local""#;
    assert!(counted.lines().any(|line| failed(line) && line.contains(service)), "{counted}");
    assert!(has(&ctx, r#"mesh_faults_injected_total{fault="reset"} 1"#));
}

#[tokio::test]
async fn no_cluster_to_choose_is_recorded() {
    let (_client, io) = pair().await;
    let ctx = context();
    let filter = TcpProxy {
        stat_prefix: "t".into(),
        authorization: Authorization::default(),
        clusters: WeightedClusters::new(vec![]),
        idle_timeout: Duration::ZERO,
        fault: None,
        hash_source: false,
        limits: None,
    };
    proxy(io, &downstream("240.240.0.1:1".parse().unwrap()), &filter, None, &ctx).await;
    assert!(has(&ctx, r#"response_flags="NC""#));
}

#[tokio::test(start_paused = true)]
async fn delays_delay_and_let_through() {
    let begun = tokio::time::Instant::now();
    inject(&Fault { rules: vec![rule(FaultKind::Delay(Duration::from_secs(3)))] }, &context()).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 3);
}

#[tokio::test]
async fn throttles_come_with_their_time() {
    let throttle = FaultKind::Throttle(crate::pace::Rate::new(1000).unwrap());
    let rules = vec![rule(throttle), rule(FaultKind::Delay(Duration::ZERO))];
    assert_eq!(inject(&Fault { rules }, &context()).await.unwrap().len(), 1);
}

#[test]
fn faults_hit_their_share_until_they_are_over() {
    let half = FaultRule { parts_per_million: 500_000, expires_unix_ms: 1000, ..rule(FaultKind::Reset) };
    assert_eq!((0..1000).filter(|_| hits(&half, 999)).count(), 500);
    assert!((0..1000).all(|_| !hits(&half, 1000)));
    assert!(hits(&rule(FaultKind::Reset), i64::MAX));
}
