//! Requests beyond what the application takes.

use super::*;
use crate::detect::Detected;
use crate::inbound::Chosen;
use crate::limit::Rate;

/// One request in a long time, `burst` at once.
fn hourly(burst: u32) -> RequestLimit {
    RequestLimit { rate: Rate::new(1, Duration::from_secs(3600), burst).unwrap(), by: LimitBy::Nobody }
}

/// The proxy of a workload.
async fn limited(app: &App, limit: RequestLimit) -> Proxy {
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app.address)])),
    ];
    let options = ProxyOptions {
        downstream: Downstream { direction: Direction::Inbound, ..downstream() },
        inline: Some(to(forward(&[("app", 1)]))),
        limit: Some(limit),
        ..ProxyOptions::default()
    };
    Proxy::new(resources, options).await
}

#[tokio::test]
async fn what_is_too_much_is_answered_with_429_and_when_to_come_again() {
    let app = App::named("ok").await;
    let proxy = limited(&app, hourly(2)).await;
    let mut client = proxy.http1().await;
    for left in ["\"mesh\";r=1;t=3600", "\"mesh\";r=0;t=7200"] {
        let answer = client.get("/").await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "ok"));
        assert_eq!(answer.header("ratelimit"), left);
        assert_eq!(answer.header("ratelimit-policy"), "\"mesh\";q=1;w=3600");
        assert!(answer.headers.get("retry-after").is_none());
    }
    let answer = client.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (429, "too many requests"));
    assert_eq!(answer.header("retry-after"), "3600");
    assert_eq!(proxy.recorded(&["response_flags=\"RL\"", "response_code=\"429\""]), 1);
}

#[tokio::test]
async fn grpc_clients_are_told_that_the_resource_is_exhausted() {
    let app = App::named("ok").await;
    let proxy = limited(&app, hourly(1)).await;
    let mut client = Client2::connect(proxy.address).await;
    assert_eq!(client.answer(Request::get("http://a/").body(full("")).unwrap()).await.status, 200);
    let request = Request::post("http://a/s/m").header("content-type", "application/grpc").body(full("")).unwrap();
    let answer = client.answer(request).await;
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "8"));
}

/// Peers keep their connections: what they may do on them is what the configuration of the moment says.
#[tokio::test]
async fn connections_that_are_open_follow_the_configuration() {
    let app = App::named("ok").await;
    let ctx = limited(&app, hourly(1)).await.ctx.clone();
    let inbound = |limit: Option<RequestLimit>| {
        let manager = HttpManager { limit, ..manager(RouteSource::Inline(Arc::new(to(forward(&[("app", 1)]))))) };
        let filter = NetworkFilter::Http(Arc::new(manager));
        let chains = vec![FilterChain { matches: ChainMatch::default(), tls: None, filter }];
        Arc::new(Listener {
            name: mesh_common::names::LISTENER_INBOUND.to_owned(),
            chains,
            default_chain: None,
            udp: None,
        })
    };
    let change = |limit| put(&ctx.store, Resource::Listener(inbound(limit)));
    let peers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = peers.local_addr().unwrap();
    let chosen = Chosen::new(&inbound(Some(hourly(1))), 80, &Detected::Http1).unwrap();
    let NetworkFilter::Http(manager) = chosen.filter() else { panic!("not HTTP") };
    let shared = ctx.clone();
    tokio::spawn(async move {
        let (stream, _) = peers.accept().await.unwrap();
        let downstream = Downstream { direction: Direction::Inbound, ..downstream() };
        let arriving = shared.in_flight.flight();
        serve_peer(stream, Arc::new(downstream), manager, chosen, arriving, shared).await;
    });
    let mut client = Client1::connect(address).await;
    assert_eq!([client.get("/").await.status, client.get("/").await.status], [200, 429]);
    change(None).await;
    assert_eq!([client.get("/").await.status, client.get("/").await.status], [200, 200]);
    // The bucket is the one from before.
    change(Some(hourly(2))).await;
    assert_eq!([client.get("/").await.status, client.get("/").await.status], [200, 429]);
}
