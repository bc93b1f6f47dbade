//! Changes of configuration under traffic, and the proxy's end.

use super::*;
use crate::snapshot::Found;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_weight_changes_fail_no_request_and_close_no_connection() {
    let (v1, v2) = (App::named("v1").await, App::named("v2").await);
    let resources = [
        Resource::Cluster(Arc::new(cluster("v1", UpstreamHttp::Http1))),
        Resource::Cluster(Arc::new(cluster("v2", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("v1", vec![endpoint(v1.address)])),
        Resource::Endpoints(endpoints("v2", vec![endpoint(v2.address)])),
        Resource::Routes(Arc::new(to(forward(&[("v1", 50), ("v2", 50)])))),
    ];
    let proxy = Proxy::new(resources, ProxyOptions::default()).await;
    let (stop, stopped) = watch::channel(false);
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = proxy.http1().await;
        let stopped = stopped.clone();
        clients.push(tokio::spawn(async move {
            let mut count = 0;
            while !*stopped.borrow() {
                let answer = client.get("/").await;
                assert_eq!(answer.status, 200);
                count += 1;
            }
            count
        }));
    }
    for i in 0..1000 {
        let weight = i % 101;
        proxy.put(Resource::Routes(Arc::new(to(forward(&[("v1", weight), ("v2", 100 - weight)]))))).await;
        tokio::task::yield_now().await;
    }
    stop.send_replace(true);
    let mut total = 0;
    for client in clients {
        total += client.await.unwrap();
    }
    assert_eq!(proxy.recorded(&["response_code=\"200\"", "response_flags=\"-\""]), total);
    assert!(v1.connections() <= 4 && v2.connections() <= 4, "{} and {}", v1.connections(), v2.connections());
}

#[tokio::test]
async fn weights_are_exact() {
    let (v1, v2) = (App::named("v1").await, App::named("v2").await);
    let resources = [
        Resource::Cluster(Arc::new(cluster("v1", UpstreamHttp::Http1))),
        Resource::Cluster(Arc::new(cluster("v2", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("v1", vec![endpoint(v1.address)])),
        Resource::Endpoints(endpoints("v2", vec![endpoint(v2.address)])),
        Resource::Routes(Arc::new(to(forward(&[("v1", 90), ("v2", 10)])))),
    ];
    let proxy = Proxy::new(resources, ProxyOptions::default()).await;
    let mut client = proxy.http1().await;
    let mut second = 0;
    for _ in 0..1000 {
        second += u32::from(client.get("/").await.text() == "v2");
    }
    assert_eq!(second, 100);
}

#[tokio::test]
async fn connections_survive_a_change_of_endpoints_and_those_of_a_gone_endpoint_finish() {
    let (sender, body) = fed();
    let body = Arc::new(std::sync::Mutex::new(Some(body)));
    let old = App::http1(move |_| {
        let body = body.lock().unwrap().take();
        async move { body.map_or_else(|| reply("old"), Response::new) }
    })
    .await;
    let new = App::named("new").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[old.address]).await;
    let mut streaming = proxy.http1().await.send(get("/")).await.unwrap();
    assert_eq!(proxy.get("/").await.text(), "old");
    assert_eq!(old.connections(), 2);
    // The same endpoint again, with another weight, beside another one.
    let heavier = Endpoint { weight: 2, ..endpoint(old.address) };
    let sick = Endpoint { healthy: false, ..endpoint(new.address) };
    proxy.put(Resource::Endpoints(endpoints("app", vec![sick, heavier]))).await;
    assert_eq!(proxy.get("/").await.text(), "old");
    assert_eq!(old.connections(), 2);
    // Gone: what is in flight goes on, what is new goes elsewhere.
    proxy.put(Resource::Endpoints(endpoints("app", vec![endpoint(new.address)]))).await;
    assert_eq!(proxy.get("/").await.text(), "new");
    old.stop_accepting();
    sender.send(http_body::Frame::data("to the end".into())).await.unwrap();
    drop(sender);
    let body = soon(streaming.body_mut().collect()).await.unwrap().to_bytes();
    assert_eq!(body, "to the end");
}

/// A cluster as it is, with other settings.
fn changes(cluster: &Cluster) -> Vec<Cluster> {
    let limits = Limits { max_connections: 7, max_pending: 7, max_requests: 7, ..cluster.limits };
    vec![
        Cluster { connect_timeout: Duration::from_secs(1), ..cluster.clone() },
        Cluster { limits, ..cluster.clone() },
        Cluster { balancer: Balancer::LeastRequest, ..cluster.clone() },
        Cluster { balancer: Balancer::Random, limits, ..cluster.clone() },
        cluster.clone(),
    ]
}

#[tokio::test]
async fn connections_survive_a_change_of_the_cluster() {
    let app = App::named("app").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    for changed in changes(&cluster("app", UpstreamHttp::Http1)) {
        assert_eq!(client.get("/").await.text(), "app");
        proxy.put(Resource::Cluster(Arc::new(changed))).await;
        assert_eq!(client.get("/").await.text(), "app");
    }
    assert_eq!(app.connections(), 1);

    // And multiplexed ones with mutual TLS.
    let (outbound, inbound) = pair(UpstreamHttp::Http1, app.address).await;
    let Found::Yes(cluster) = outbound.ctx.store.cluster("app").await else { panic!("no cluster") };
    let mut client = outbound.http1().await;
    for changed in changes(&cluster) {
        assert_eq!(client.get("/").await.text(), "app");
        outbound.put(Resource::Cluster(Arc::new(changed))).await;
        assert_eq!(client.get("/").await.text(), "app");
    }
    assert_eq!(inbound.connections.load(Ordering::SeqCst), 1);
    // Other peers are wanted: what leads to the former ones is of no use.
    let other = UpstreamTls { sni: "other".to_owned(), ..cluster.tls.clone().unwrap() };
    outbound.put(Resource::Cluster(Arc::new(Cluster { tls: Some(other), ..(*cluster).clone() }))).await;
    assert_eq!(client.get("/").await.text(), "app");
    assert_eq!(inbound.connections.load(Ordering::SeqCst), 2);
}

/// Each in turn; whichever has fewest requests; and neither of them.
#[tokio::test]
async fn a_change_of_the_balancer_takes_effect() {
    let (release, released) = watch::channel(false);
    let slow = App::http1(move |request: Request<Incoming>| {
        let mut released = released.clone();
        async move {
            if request.uri().path() == "/hold" {
                released.wait_for(|it| *it).await.unwrap();
            }
            reply("slow")
        }
    })
    .await;
    let other = App::http1(|_| async { reply("other") }).await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[slow.address, other.address]).await;
    let mut client = proxy.http1().await;
    // While `slow` has a request that does not end. One of two in turn takes it.
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut caller = proxy.http1().await;
        held.push(tokio::spawn(async move { caller.get("/hold").await }));
        tokio::task::yield_now().await;
    }
    until("one is held", || held.iter().filter(|it| it.is_finished()).count() == 1 && slow.connections() == 1).await;
    for (balancer, slow) in
        [(Balancer::RoundRobin, 100..=100), (Balancer::LeastRequest, 0..=0), (Balancer::Random, 60..=140)]
    {
        proxy.put(Resource::Cluster(Arc::new(Cluster { balancer, ..cluster("app", UpstreamHttp::Http1) }))).await;
        let (mut count, mut texts) = (0, String::new());
        for _ in 0..200 {
            let answer = client.get("/").await;
            count += i32::from(answer.text() == "slow");
            texts.push_str(&answer.text()[..1]);
        }
        assert!(slow.contains(&count), "{balancer:?}: {count} of 200");
        assert_eq!(texts.contains("ss") && texts.contains("oo"), balancer == Balancer::Random, "{balancer:?}: {texts}");
    }
    release.send_replace(true);
    for held in held {
        held.await.unwrap();
    }
}

#[tokio::test]
async fn the_first_request_waits_for_its_configuration() {
    let app = App::named("at last").await;
    let proxy = Proxy::new([], ProxyOptions::default()).await;
    let mut client = proxy.http1().await;
    let asking = tokio::spawn(async move { client.get("/").await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    proxy.put(Resource::Routes(Arc::new(to(forward(&[("app", 1)]))))).await;
    proxy.put(Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1)))).await;
    proxy.put(Resource::Endpoints(endpoints("app", vec![endpoint(app.address)]))).await;
    assert_eq!(asking.await.unwrap().text(), "at last");
}

#[tokio::test]
async fn at_its_end_the_proxy_finishes_what_has_begun() {
    let (sender, body) = fed();
    let body = Arc::new(std::sync::Mutex::new(Some(body)));
    let app = App::http1(move |_| {
        let body = body.lock().unwrap().take().unwrap();
        async move { Response::new(body) }
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut idle = proxy.raw().await;
    let mut busy = proxy.http1().await;
    let mut response = busy.send(get("/")).await.unwrap();
    proxy.phase.send_replace(Phase::Ending);
    assert_eq!(soon(idle.read(&mut [0])).await.unwrap(), 0);
    sender.send(http_body::Frame::data("finished".into())).await.unwrap();
    drop(sender);
    assert_eq!(soon(response.body_mut().collect()).await.unwrap().to_bytes(), "finished");
    until("closed", || busy.0.is_closed()).await;
}

#[tokio::test]
async fn unused_connections_are_closed_and_clusters_that_are_gone_are_forgotten() {
    let open = Arc::new(AtomicUsize::new(0));
    let counted = open.clone();
    let app = App::raw(move |mut stream, _| {
        let open = counted.clone();
        async move {
            open.fetch_add(1, Ordering::SeqCst);
            let mut buffer = [0; 4096];
            while stream.read(&mut buffer).await.unwrap_or(0) > 0 {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let upstreams = &proxy.ctx.upstreams;
    assert_eq!(proxy.get("/").await.text(), "ok");
    upstreams.sweep(std::time::Instant::now() + Duration::from_secs(30));
    assert_eq!(proxy.get("/").await.text(), "ok");
    assert_eq!((app.connections(), open.load(Ordering::SeqCst)), (1, 1));
    upstreams.sweep(std::time::Instant::now() + Duration::from_secs(61));
    until("closed", || open.load(Ordering::SeqCst) == 0).await;
    assert_eq!(proxy.get("/").await.text(), "ok");
    // As long as a table refers to a cluster, it stays.
    proxy.put(Resource::Routes(Arc::new(to(forward(&[]))))).await;
    proxy.remove(Type::Cluster, "app").await;
    upstreams.sweep(std::time::Instant::now());
    until("closed", || open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_byte_stream_passes_over_an_endpoint_that_takes_no_connection() {
    let app = App::raw(|mut stream, _| async move { stream.write_all(b"hello").await.unwrap() }).await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[nowhere().await, app.address]).await;
    for _ in 0..4 {
        let mut stream = proxy.ctx.upstreams.connect_tcp("app", &downstream(), None).await.unwrap();
        assert_eq!(stream.endpoint.address, app.address);
        let mut text = String::new();
        soon(stream.io.read_to_string(&mut text)).await.unwrap();
        assert_eq!(text, "hello");
    }
    let client = downstream();
    let unknown = proxy.ctx.upstreams.connect_tcp("other", &client, None);
    assert!(tokio::time::timeout(Duration::from_millis(20), unknown).await.is_err(), "asks for what it does not know");
}

/// Its machine or network is gone: no answer comes, and no end of the connection.
#[tokio::test]
async fn a_request_does_not_wait_for_an_endpoint_that_was_taken_away_and_answers_nothing() {
    let silent = App::raw(|mut stream, _| async move {
        // SETTINGS, and nothing more, to pings neither.
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).await.unwrap_or(0) > 0 {}
    })
    .await;
    let app = App::http2(|_| async { reply("ok") }).await;
    let proxy = Proxy::simple(UpstreamHttp::Http2, &[silent.address]).await;
    let mut client = proxy.http1().await;
    let waiting = tokio::spawn(async move { client.send(get("/")).await });
    until("connected", || silent.connections() == 1).await;
    proxy.put(Resource::Endpoints(endpoints("app", vec![endpoint(app.address)]))).await;
    assert_eq!(proxy.get("/").await.text(), "ok");
    let start = std::time::Instant::now();
    let answer = soon(waiting).await.unwrap().unwrap();
    assert!(answer.status() == 200 || answer.status() == 503, "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_future_of_a_request_is_small() {
    let proxy = Proxy::new([], ProxyOptions::default()).await;
    let conn = Arc::new(Connection::new(
        Arc::new(downstream()),
        Arc::new(manager(rds())),
        None,
        proxy.ctx.clone(),
        Arc::new(io::Signals::new()),
    ));
    let size = pipeline::size_of_future(conn);
    assert!(size <= 4096, "{size} bytes are moved for each request");
}
