//! Make before break: what comes in which order across types.

use std::time::Duration;

use super::super::session::Order;
use super::super::types::Type::*;
use super::super::view::Protocol;
use super::*;

fn world() -> World {
    World::new(&[(Cluster, "old", "1"), (Endpoints, "old", "1"), (Listener, "l", "r"), (Route, "r", "old")])
}

/// Everything moves from `old` to `new`.
fn moved() -> World {
    let next = world().with(Cluster, "new", Some("1")).with(Endpoints, "new", Some("1"));
    next.with(Route, "r", Some("new")).with(Cluster, "old", None).with(Endpoints, "old", None)
}

/// A server whose client has the whole of `world()`.
fn envoy(protocol: Protocol) -> Server {
    let mut server = Server::new(protocol, Order::WaitForWarm, &world());
    for (ty, names) in [(Cluster, &[][..]), (Endpoints, &["old"]), (Listener, &[]), (Route, &["r"])] {
        match protocol {
            Protocol::Delta => {
                let pushes = server.delta(delta(ty, names, &[]));
                server.settle(pushes);
            }
            Protocol::StateOfTheWorld => {
                let pushes = server.sotw(sotw(ty, names, ""));
                assert!(server.sotw(sotw(ty, names, &pushes[0].nonce)).is_empty());
            }
        }
    }
    server
}

#[test]
fn a_route_waits_until_its_new_cluster_is_warm_and_the_old_cluster_until_the_route_is_gone() {
    let mut server = envoy(Protocol::Delta);
    let clusters = server.update(&moved());
    assert_eq!(shown(&clusters), ["CDS +new=1"]);
    // Envoy asks for the endpoints of the new cluster and acknowledges it when it is warm.
    let endpoints = server.delta(delta(Endpoints, &["new"], &[]));
    assert_eq!(shown(&endpoints), ["EDS +new=1"]);
    assert!(server.ack(&endpoints[0]).is_empty());
    let routes = server.ack(&clusters[0]);
    assert_eq!(shown(&routes), ["RDS +r=new"]);
    let removed = server.ack(&routes[0]);
    assert_eq!(shown(&removed), ["CDS -old"]);
    assert_eq!(server.session.synced_revision(), 1);
    // Envoy drops the endpoints by itself.
    assert!(server.delta(delta(Endpoints, &[], &["old"])).is_empty());
    assert!(server.ack(&removed[0]).is_empty());
    assert_eq!(server.session.synced_revision(), moved().revision);
}

#[test]
fn state_of_the_world_keeps_the_old_cluster_until_the_route_is_gone() {
    let mut server = envoy(Protocol::StateOfTheWorld);
    let clusters = server.update(&moved());
    assert_eq!(shown(&clusters), ["CDS +new=1 +old=1"]);
    let endpoints = server.sotw(sotw(Endpoints, &["new", "old"], "2"));
    assert_eq!(shown(&endpoints), ["EDS +new=1"]);
    assert!(server.sotw(sotw(Endpoints, &["new", "old"], &endpoints[0].nonce)).is_empty());
    let routes = server.sotw(sotw(Cluster, &[], &clusters[0].nonce));
    assert_eq!(shown(&routes), ["RDS +r=new"]);
    let removed = server.sotw(sotw(Route, &["r"], &routes[0].nonce));
    assert_eq!(shown(&removed), ["CDS +new=1"]);
    let removed = server.sotw(sotw(Cluster, &[], &removed[0].nonce));
    // There is no way to say that endpoints are gone but to leave them out.
    assert_eq!(shown(&removed), ["EDS"]);
    assert!(server.sotw(sotw(Endpoints, &["new"], &removed[0].nonce)).is_empty());
    assert_eq!(server.session.synced_revision(), moved().revision);
}

#[test]
fn a_client_that_never_acknowledges_its_clusters_gets_its_routes_in_the_end() {
    let mut server = envoy(Protocol::Delta);
    assert_eq!(shown(&server.update(&moved())), ["CDS +new=1"]);
    let wake = server.session.wake_at(server.now).unwrap();
    assert_eq!(wake - server.now, Duration::from_secs(20));
    assert!(server.later(Duration::from_secs(19)).is_empty());
    assert_eq!(shown(&server.later(Duration::from_secs(1))), ["RDS +r=new"]);
    assert_eq!(server.session.wake_at(server.now), None);
}

#[test]
fn endpoints_of_a_changed_cluster_are_sent_again_to_envoy_alone() {
    let changed = world().with(Cluster, "old", Some("2"));
    let mut server = envoy(Protocol::Delta);
    assert_eq!(shown(&server.update(&changed)), ["CDS +old=2", "EDS +old=1"]);
    let mut server = envoy(Protocol::StateOfTheWorld);
    assert_eq!(shown(&server.update(&changed)), ["CDS +old=2", "EDS +old=1"]);
    // Not those of the clusters that only come along.
    let mut server = envoy(Protocol::StateOfTheWorld);
    assert_eq!(shown(&server.update(&world().with(Cluster, "new", Some("1")))), ["CDS +new=1 +old=1"]);
    let mut server = Server::new(Protocol::Delta, Order::AnswerAtOnce, &world());
    for ty in [Cluster, Endpoints] {
        let pushes = server.delta(delta(ty, &["old"], &[]));
        server.settle(pushes);
    }
    assert_eq!(shown(&server.update(&changed)), ["CDS +old=2"]);
}

#[test]
fn a_client_that_asks_by_name_gets_a_subscribed_cluster_before_the_route_to_it() {
    let mut server = Server::new(Protocol::Delta, Order::AnswerAtOnce, &world());
    for (ty, names) in [(Cluster, &["old", "new"][..]), (Route, &["r"])] {
        let pushes = server.delta(delta(ty, names, &[]));
        server.settle(pushes);
    }
    let pushes = server.update(&moved());
    assert_eq!(shown(&pushes), ["CDS +new=1", "RDS +r=new"]);
    assert!(server.ack(&pushes[0]).is_empty());
    assert_eq!(shown(&server.ack(&pushes[1])), ["CDS -old"]);
}

#[test]
fn a_change_does_not_overtake_a_cluster_that_has_to_wait() {
    let mut server = Server::new(Protocol::Delta, Order::AnswerAtOnce, &world());
    let pushes = server.delta(delta(Route, &["r"], &[]));
    server.settle(pushes);
    // An earlier answer about clusters is still under way.
    let waiting = server.delta(delta(Cluster, &["old", "new"], &[]));
    assert!(server.update(&moved()).is_empty());
    // What the client asks for itself is answered all the same.
    assert_eq!(shown(&server.delta(delta(Listener, &["l"], &[]))), ["LDS +l=r"]);
    assert_eq!(shown(&server.ack(&waiting[0])), ["CDS +new=1", "RDS +r=new"]);
}

#[test]
fn nothing_is_removed_while_a_refused_route_may_still_use_it() {
    let mut server = envoy(Protocol::Delta);
    let clusters = server.update(&moved());
    let routes = server.ack(&clusters[0]);
    assert_eq!(shown(&routes), ["RDS +r=new"]);
    assert!(server.nack(&routes[0], "no").is_empty());
    // It is as far as it can get, which is not all the way.
    assert_eq!(server.session.revision(), Some(moved().revision));
    assert!(server.session.synced_revision() < moved().revision);
    let mut mended = moved().with(Route, "r", Some("new!"));
    let routes = server.update(&mended);
    assert_eq!(shown(&server.settle(routes)), ["RDS +r=new!", "CDS -old", "EDS -old"]);
    mended.revision += 1;
    server.update(&mended);
    assert_eq!(server.session.synced_revision(), mended.revision);
}

#[test]
fn an_answer_that_there_is_nothing_waits_for_nobody() {
    let mut server = Server::new(Protocol::Delta, Order::AnswerAtOnce, &world());
    server.delta(delta(Cluster, &["old"], &[]));
    server.delta(delta(Route, &["r"], &[]));
    assert_eq!(shown(&server.delta(delta(Name, &["example.com"], &[]))), ["NAME -example.com"]);
}
