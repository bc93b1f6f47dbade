//! The protocol's rules, one by one.

use std::collections::HashMap;
use std::time::Duration;

use super::super::session::{Limits, Order, Refused};
use super::super::types::Type::*;
use super::super::view::{Protocol, Status, View};
use super::*;

fn world() -> World {
    World::new(&[(Cluster, "a", "1"), (Cluster, "b", "1"), (Listener, "l", "1"), (Name, "n", "1"), (Route, "r", "1")])
}

fn delta_server(world: &World) -> Server {
    Server::new(Protocol::Delta, Order::AnswerAtOnce, world)
}

fn sotw_server(world: &World) -> Server {
    Server::new(Protocol::StateOfTheWorld, Order::AnswerAtOnce, world)
}

#[test]
fn delta_sends_what_is_named_and_says_what_is_not_there() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["a", "x"], &[]));
    assert_eq!(shown(&pushes), ["CDS +a=1 -x"]);
    assert!(server.ack(&pushes[0]).is_empty());
    // It stays subscribed, and is sent when it comes into being.
    let pushes = server.update(&world().with(Cluster, "x", Some("1")));
    assert_eq!(shown(&pushes), ["CDS +x=1"]);
}

#[test]
fn delta_without_names_asks_for_all_clusters_and_listeners() {
    let mut server = delta_server(&world());
    assert_eq!(shown(&server.delta(delta(Cluster, &[], &[]))), ["CDS +a=1 +b=1"]);
    assert_eq!(shown(&server.delta(delta(Listener, &["*"], &[]))), ["LDS +l=1"]);
    assert!(server.delta(delta(Route, &[], &[])).is_empty());
    // Of other types only explicitly.
    assert_eq!(shown(&server.delta(delta(Route, &["*"], &[]))), ["RDS +r=1"]);
}

#[test]
fn a_name_that_the_wildcard_does_not_cover_goes_when_it_is_dropped() {
    let world = world().with(Cluster, "hidden", Some("1"));
    let mut server = delta_server(&world);
    let pushes = server.delta(delta(Cluster, &["hidden"], &[]));
    // Dropped while it is under way, before the wildcard came.
    assert!(server.delta(delta(Cluster, &["*"], &["hidden"])).is_empty());
    let pushes = server.ack(&pushes[0]);
    assert_eq!(shown(&server.settle(pushes)), ["CDS +a=1 +b=1", "CDS -hidden"]);
    let mut server = delta_server(&world);
    let pushes = server.delta(delta(Cluster, &["*", "hidden"], &[]));
    assert_eq!(shown(&server.settle(pushes)), ["CDS +a=1 +b=1 +hidden=1"]);
    let pushes = server.delta(delta(Cluster, &[], &["hidden"]));
    assert_eq!(shown(&pushes), ["CDS -hidden"]);
}

#[test]
fn an_empty_wildcard_is_answered() {
    for order in [Order::AnswerAtOnce, Order::WaitForWarm] {
        let mut server = Server::new(Protocol::Delta, order, &World::new(&[]));
        assert_eq!(shown(&server.delta(delta(Cluster, &[], &[]))), ["CDS"]);
        let mut server = Server::new(Protocol::StateOfTheWorld, order, &World::new(&[]));
        assert_eq!(shown(&server.sotw(sotw(Cluster, &[], ""))), ["CDS"]);
    }
}

#[test]
fn what_has_not_changed_is_not_sent() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["a"], &[]));
    server.settle(pushes);
    assert!(server.update(&world().with(Cluster, "b", Some("2"))).is_empty());
    assert!(server.update(&world().with(Route, "r", Some("2"))).is_empty());
    assert_eq!(shown(&server.update(&world().with(Cluster, "a", Some("2")))), ["CDS +a=2"]);
}

#[test]
fn one_response_of_a_type_waits_for_its_answer() {
    let mut server = delta_server(&world());
    let first = server.delta(delta(Cluster, &["a"], &[]));
    let changed = world().with(Cluster, "a", Some("2"));
    assert!(server.update(&changed).is_empty());
    assert!(server.delta(delta(Cluster, &["b"], &[])).is_empty());
    // Other types are not held up.
    assert_eq!(shown(&server.delta(delta(Name, &["n"], &[]))), ["NAME +n=1"]);
    let changed = changed.with(Cluster, "a", Some("3"));
    assert!(server.update(&changed).is_empty());
    assert_eq!(shown(&server.ack(&first[0])), ["CDS +a=3 +b=1"]);
}

#[test]
fn delta_reconnect_sends_only_what_differs() {
    let before = world();
    let version = |name: &str| before.get(Cluster, name).unwrap().version.clone();
    let mut server = delta_server(&before.with(Cluster, "c", Some("1")).with(Cluster, "b", Some("2")));
    let mut request = delta(Cluster, &[], &[]);
    request.initial_resource_versions = HashMap::from([
        ("a".to_owned(), version("a")),
        ("b".to_owned(), version("b")),
        ("gone".to_owned(), "1".to_owned()),
    ]);
    let pushes = server.delta(request.clone());
    assert_eq!(shown(&pushes), ["CDS +b=2 +c=1"]);
    assert_eq!(shown(&server.ack(&pushes[0])), ["CDS -gone"]);

    // By name, and with nothing new: no answer at all.
    let mut server = delta_server(&before);
    let mut request = delta(Cluster, &["a"], &[]);
    request.initial_resource_versions =
        HashMap::from([("a".to_owned(), version("a")), ("b".to_owned(), "1".to_owned())]);
    assert!(server.delta(request).is_empty());
    assert_eq!(server.session.track(Cluster).acked_count(), 1);
    assert_eq!(server.session.synced_revision(), 1);
}

#[test]
fn who_subscribes_again_is_sent_again() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["a", "x"], &[]));
    server.settle(pushes);
    let pushes = server.delta(delta(Cluster, &["a"], &[]));
    assert_eq!(shown(&pushes), ["CDS +a=1"]);
    // Also while the same is under way: the client may have forgotten since.
    assert!(server.delta(delta(Cluster, &["a"], &[])).is_empty());
    let pushes = server.ack(&pushes[0]);
    assert_eq!(shown(&pushes), ["CDS +a=1"]);
    server.settle(pushes);
    assert_eq!(shown(&server.delta(delta(Cluster, &["x"], &[]))), ["CDS -x"]);
}

#[test]
fn a_name_dropped_and_added_while_under_way_is_sent_again() {
    let mut server = delta_server(&world());
    let first = server.delta(delta(Cluster, &["a"], &[]));
    assert!(server.delta(delta(Cluster, &[], &["a"])).is_empty());
    assert!(server.delta(delta(Cluster, &["a"], &[])).is_empty());
    assert_eq!(shown(&server.ack(&first[0])), ["CDS +a=1"]);
}

#[test]
fn dropped_names_are_forgotten() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["a", "b"], &[]));
    server.settle(pushes);
    assert!(server.delta(delta(Cluster, &[], &["a", "never"])).is_empty());
    assert!(server.update(&world().with(Cluster, "a", None)).is_empty());
    assert_eq!(server.session.track(Cluster).acked_count(), 1);
}

#[test]
fn a_name_dropped_under_a_wildcard_is_told_as_the_wildcard_has_it() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["*", "a", "x"], &[]));
    assert_eq!(shown(&pushes), ["CDS +a=1 +b=1 -x"]);
    server.settle(pushes);
    let pushes = server.delta(delta(Cluster, &[], &["a", "x"]));
    assert_eq!(shown(&server.settle(pushes)), ["CDS +a=1", "CDS -x"]);
    // Without the wildcard nothing is left.
    assert!(server.delta(delta(Cluster, &[], &["*"])).is_empty());
    assert_eq!(server.session.track(Cluster).acked_count(), 0);
}

#[test]
fn removals_are_told_once() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &[], &[]));
    server.settle(pushes);
    let without = world().with(Cluster, "a", None);
    let pushes = server.update(&without);
    assert_eq!(shown(&pushes), ["CDS -a"]);
    assert!(server.ack(&pushes[0]).is_empty());
    assert!(server.update(&without.with(Cluster, "c", None)).is_empty());
    assert_eq!(shown(&server.update(&without.with(Cluster, "a", Some("1")))), ["CDS +a=1"]);
}

/// However changes and acknowledgements interleave, a revision counts as acknowledged when none of its changes is left.
#[test]
fn endpoints_are_acknowledged_up_to_a_revision() {
    let world = World::new(&[(Endpoints, "a", "1"), (Endpoints, "b", "1"), (Cluster, "c", "1")]);
    let mut server = delta_server(&world);
    assert_eq!(server.session.endpoints_acknowledged(), 1);
    let first = server.delta(delta(Endpoints, &["a", "b"], &[]));
    // What a client brings along from before may be of any age.
    assert_eq!(server.session.endpoints_acknowledged(), 0);
    server.settle(first);
    assert_eq!(server.session.endpoints_acknowledged(), 1);

    let second = world.with(Endpoints, "a", Some("2"));
    let pushed = server.update(&second);
    assert_eq!(server.session.endpoints_acknowledged(), 1);
    // Revisions 3 to 5 come as one; it is not known which of them has changed `b`.
    let fifth = second.with(Cluster, "c", None).with(Endpoints, "b", None).with(Cluster, "d", Some("1"));
    assert!(server.update(&fifth).is_empty());
    let removal = server.ack(&pushed[0]);
    assert_eq!(shown(&removal), ["EDS -b"]);
    assert_eq!(server.session.endpoints_acknowledged(), 2);
    // A change that is under way says nothing about later ones.
    let sixth = fifth.with(Endpoints, "a", Some("3"));
    assert!(server.update(&sixth).is_empty());
    let last = server.ack(&removal[0]);
    assert_eq!((shown(&last), server.session.endpoints_acknowledged()), (vec!["EDS +a=3".to_owned()], 5));
    // What is refused does not come about by waiting.
    server.nack(&last[0], "no");
    assert_eq!(server.session.endpoints_acknowledged(), 6);
    // Who asks for more waits for no change.
    server.delta(delta(Endpoints, &["x"], &[]));
    assert_eq!(server.session.endpoints_acknowledged(), 6);
}

#[test]
fn a_nonce_that_is_not_the_last_ones_is_no_answer() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["a"], &[]));
    let mut stale = delta(Cluster, &["b"], &[]);
    stale.response_nonce = "0".to_owned();
    stale.error_detail = Some(error("of another response"));
    assert!(server.delta(stale).is_empty());
    assert!(server.session.track(Cluster).nack().is_none());
    // But its names count.
    let pushes = server.ack(&pushes[0]);
    assert_eq!(shown(&pushes), ["CDS +b=1"]);
    server.settle(pushes.clone());
    assert!(server.nack(&pushes[0], "answered before").is_empty());
    assert!(server.session.track(Cluster).nack().is_none());
}

#[test]
fn what_was_rejected_is_not_sent_again_before_it_changes() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["a", "b"], &[]));
    assert!(server.nack(&pushes[0], "a is bad").is_empty());
    let track = server.session.track(Cluster);
    assert_eq!(track.nack().unwrap().message, "a is bad");
    assert!(track.resources().values().all(|(_, status)| *status == Status::Error));

    // Another resource of the type passes, and the rejection stands.
    let pushes = server.delta(delta(Cluster, &["x"], &[]));
    assert_eq!(shown(&pushes), ["CDS -x"]);
    server.settle(pushes);
    let changed = world().with(Cluster, "x", Some("1"));
    let pushes = server.update(&changed);
    assert_eq!(shown(&pushes), ["CDS +x=1"]);
    server.settle(pushes);
    assert!(server.session.track(Cluster).nack().is_some());

    // With what is wrong put right, all of the rejected response goes out.
    let pushes = server.update(&changed.with(Cluster, "a", Some("2")));
    assert_eq!(shown(&pushes), ["CDS +a=2 +b=1"]);
    server.settle(pushes);
    assert!(server.session.track(Cluster).nack().is_none());
}

#[test]
fn going_back_to_what_was_accepted_ends_a_rejection() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["a"], &[]));
    server.settle(pushes);
    let bad = world().with(Cluster, "a", Some("bad"));
    let pushes = server.update(&bad);
    server.nack(&pushes[0], "bad");
    let pushes = server.update(&bad.with(Cluster, "a", Some("1")));
    assert_eq!(shown(&pushes), ["CDS +a=1"]);
    server.settle(pushes);
    assert!(server.session.track(Cluster).nack().is_none());
}

#[test]
fn a_change_that_comes_while_a_bad_one_is_under_way_takes_the_rest_along() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["a", "b"], &[]));
    assert!(server.update(&world().with(Cluster, "a", Some("2"))).is_empty());
    assert_eq!(shown(&server.nack(&pushes[0], "a=1 is bad")), ["CDS +a=2 +b=1"]);
}

#[test]
fn a_rejected_resource_that_goes_away_is_removed_under_a_wildcard() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &[], &[]));
    server.nack(&pushes[0], "only b is bad");
    let pushes = server.update(&world().with(Cluster, "a", None));
    // The client may have taken `a`.
    assert_eq!(shown(&server.settle(pushes)), ["CDS +b=1", "CDS -a"]);
}

#[test]
fn large_sets_are_spread_over_responses() {
    let limits = Limits { response_bytes: 12, ..Limits::default() };
    let many = World::new(&[(Cluster, "a", "12345"), (Cluster, "b", "12345"), (Cluster, "c", "123456789012345")]);
    let mut server = Server::limited(Protocol::Delta, Order::WaitForWarm, &many, limits);
    let pushes = server.delta(delta(Cluster, &[], &[]));
    assert_eq!(shown(&server.settle(pushes)), ["CDS +a=12345", "CDS +b=12345", "CDS +c=123456789012345"]);
    // A full set is never spread.
    let mut server = Server::limited(Protocol::StateOfTheWorld, Order::WaitForWarm, &many, limits);
    assert_eq!(server.sotw(sotw(Cluster, &[], ""))[0].resources.len(), 3);
}

#[test]
fn too_many_or_too_long_names_end_the_stream() {
    let limits = Limits { names: 2, name_length: 4, ..Limits::default() };
    let mut server = Server::limited(Protocol::Delta, Order::AnswerAtOnce, &world(), limits);
    assert!(server.try_delta(&delta(Cluster, &["a", "b"], &[])).is_ok());
    assert_eq!(server.try_delta(&delta(Route, &["r"], &[])), Err(Refused::TooManyNames(2)));
    let long = server.try_delta(&delta(Cluster, &["12345"], &[]));
    assert_eq!(long, Err(Refused::LongName(4, "12345".to_owned())));
}

#[test]
fn types_that_are_not_served_are_ignored() {
    let mut request = delta(Cluster, &["a"], &[]);
    request.type_url = "type.googleapis.com/envoy.service.runtime.v3.Runtime".to_owned();
    assert!(delta_server(&world()).delta(request).is_empty());
}

#[test]
fn a_long_error_message_is_cut_at_a_character() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["a"], &[]));
    server.nack(&pushes[0], &"ä".repeat(4000));
    assert_eq!(server.session.track(Cluster).nack().unwrap().message.len(), 4096);
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["a"], &[]));
    server.nack(&pushes[0], &format!("x{}", "ä".repeat(4000)));
    assert_eq!(server.session.track(Cluster).nack().unwrap().message.len(), 4095);
}

#[test]
fn state_of_the_world_holds_all_clusters_but_only_changed_routes() {
    let world = world().with(Route, "s", Some("1"));
    let mut server = sotw_server(&world);
    let clusters = server.sotw(sotw(Cluster, &[], ""));
    assert_eq!(shown(&clusters), ["CDS +a=1 +b=1"]);
    assert!(server.sotw(sotw(Cluster, &[], &clusters[0].nonce)).is_empty());
    let routes = server.sotw(sotw(Route, &["r", "s"], ""));
    assert_eq!(shown(&routes), ["RDS +r=1 +s=1"]);
    assert!(server.sotw(sotw(Route, &["r", "s"], &routes[0].nonce)).is_empty());

    let world = world.with(Cluster, "b", Some("2")).with(Route, "s", Some("2"));
    let pushes = server.update(&world);
    assert_eq!(shown(&pushes), ["CDS +a=1 +b=2", "RDS +s=2"]);
    assert_ne!(pushes[0].version, clusters[0].version);
}

#[test]
fn equal_sets_have_equal_versions() {
    let version = |names: &[&str]| sotw_server(&world()).sotw(sotw(Cluster, names, ""))[0].version.clone();
    assert_eq!(version(&[]), version(&["a", "b"]));
    assert_ne!(version(&[]), version(&["a"]));
}

#[test]
fn state_of_the_world_answers_more_names_with_what_is_new() {
    let mut server = sotw_server(&world().with(Route, "s", Some("1")));
    let pushes = server.sotw(sotw(Route, &["r"], ""));
    assert_eq!(shown(&pushes), ["RDS +r=1"]);
    let pushes = server.sotw(sotw(Route, &["r", "s"], &pushes[0].nonce));
    assert_eq!(shown(&pushes), ["RDS +s=1"]);
    // A name that is not there: an answer without it, once.
    let pushes = server.sotw(sotw(Route, &["r", "s", "x"], &pushes[0].nonce));
    assert_eq!(shown(&pushes), ["RDS"]);
    assert!(server.sotw(sotw(Route, &["r", "s", "x"], &pushes[0].nonce)).is_empty());
    // Fewer names: no answer; the same again later: sent again.
    assert!(server.sotw(sotw(Route, &["s"], &pushes[0].nonce)).is_empty());
    assert_eq!(shown(&server.sotw(sotw(Route, &["r", "s"], &pushes[0].nonce))), ["RDS +r=1"]);
}

#[test]
fn state_of_the_world_ignores_stale_nonces() {
    let mut server = sotw_server(&world());
    let first = server.sotw(sotw(Cluster, &["a"], ""));
    // Sent before the client saw the response: it will answer that with all its names.
    assert!(server.sotw(sotw(Cluster, &["a", "b"], "")).is_empty());
    let second = server.sotw(sotw(Cluster, &["a", "b"], &first[0].nonce));
    assert_eq!(shown(&second), ["CDS +a=1 +b=1"]);
    assert!(server.sotw(sotw(Cluster, &["a"], &first[0].nonce)).is_empty());
    assert_eq!(server.session.track(Cluster).subscription().names().len(), 2);
    assert!(server.sotw(sotw(Cluster, &["a", "b"], &second[0].nonce)).is_empty());
    assert_eq!(server.session.track(Cluster).acked_count(), 2);
}

#[test]
fn a_nonce_of_an_earlier_stream_does_no_harm() {
    let mut server = sotw_server(&world());
    assert_eq!(shown(&server.sotw(sotw(Cluster, &["a"], "77"))), ["CDS +a=1"]);
}

#[test]
fn state_of_the_world_keeps_a_rejection_until_a_good_answer() {
    let mut server = sotw_server(&world());
    let pushes = server.sotw(sotw(Cluster, &[], ""));
    let mut nack = sotw(Cluster, &[], &pushes[0].nonce);
    nack.error_detail = Some(error("bad"));
    assert!(server.sotw(nack).is_empty());
    assert_eq!(server.session.track(Cluster).nack().unwrap().message, "bad");
    assert_eq!(server.session.synced_revision(), 0);
    let pushes = server.update(&world().with(Cluster, "c", Some("1")));
    assert_eq!(shown(&pushes), ["CDS +a=1 +b=1 +c=1"]);
    assert!(server.sotw(sotw(Cluster, &[], &pushes[0].nonce)).is_empty());
    assert!(server.session.track(Cluster).nack().is_none());
    assert_eq!(server.session.synced_revision(), 2);
}

#[test]
fn a_client_is_in_step_when_it_has_acknowledged_or_nothing_changed_for_it() {
    let mut server = delta_server(&world());
    assert!(server.pushes().is_empty());
    assert_eq!(server.session.synced_revision(), 1);
    let pushes = server.delta(delta(Cluster, &["a"], &[]));
    server.settle(pushes);
    let second = world().with(Route, "r", Some("2"));
    server.update(&second);
    assert_eq!(server.session.synced_revision(), 2);
    let third = second.with(Cluster, "a", Some("2"));
    let pushes = server.update(&third);
    assert_eq!(server.session.synced_revision(), 2);
    let sent_at = server.now;
    server.now += Duration::from_millis(7);
    server.ack(&pushes[0]);
    assert_eq!(server.session.synced_revision(), 3);
    assert_eq!(server.session.settled_at(3).unwrap() - sent_at, Duration::from_millis(7));
    assert!(server.session.settled_at(4).is_none());
    // A rejection leaves the client at what it had.
    let pushes = server.update(&third.with(Cluster, "a", Some("3")));
    server.nack(&pushes[0], "bad");
    assert_eq!(server.session.synced_revision(), 3);
}

#[test]
fn the_time_of_a_push_counts_from_the_commit_that_caused_it() {
    let mut server = delta_server(&world());
    let pushes = server.delta(delta(Cluster, &["a"], &[]));
    let answer = |push: &Push| DeltaDiscoveryRequest { response_nonce: push.nonce.clone(), ..delta(push.ty, &[], &[]) };
    // An answer to a question has no commit.
    let verdict = server.try_delta(&answer(&pushes[0])).unwrap().unwrap();
    assert_eq!((verdict.rejection, verdict.committed_at), (None, None));
    let changed = world().with(Cluster, "a", Some("2"));
    let pushes = server.update(&changed);
    // What changes meanwhile goes out with the next response, and counts from its own commit.
    let mut later = changed.with(Cluster, "a", Some("3"));
    later.committed_at += Duration::from_secs(1);
    server.update(&later);
    let verdict = server.try_delta(&answer(&pushes[0])).unwrap().unwrap();
    assert_eq!(verdict.committed_at, Some(changed.committed_at));
    let pushes = server.pushes();
    let verdict = server.try_delta(&answer(&pushes[0])).unwrap().unwrap();
    assert_eq!(verdict.committed_at, Some(later.committed_at));
}
