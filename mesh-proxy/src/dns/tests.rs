use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name as DnsName, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;
use crate::config::Name;
use crate::snapshot::Resource;
use crate::telemetry::TelemetryOptions;

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(DnsName::from_ascii(name).unwrap(), kind));
    message
}

fn bytes(name: &str, kind: RecordType) -> Vec<u8> {
    query(name, kind).to_vec().unwrap()
}

fn store() -> Store {
    let name = |addresses: &[&str]| {
        Arc::new(Name {
            addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
            ttl_seconds: 30,
            canonical: "reviews.default.svc.cluster.local".into(),
            alias: None,
        })
    };
    let alias = |to: &str| {
        let alias = Some(DnsName::from_ascii(to).unwrap());
        Arc::new(Name { addresses: Vec::new(), ttl_seconds: 30, canonical: String::new(), alias })
    };
    let many: Vec<_> = (0..60).map(|i| format!("240.240.1.{i}")).collect();
    Store::of([
        Resource::Name("reviews".into(), name(&["240.240.0.5", "fd00:6d65:7368::5"])),
        Resource::Name("four.only".into(), name(&["240.240.0.6"])),
        Resource::Name("old".into(), alias("older.")),
        Resource::Name("older".into(), alias("Reviews.")),
        Resource::Name("db".into(), alias("db.example.com.")),
        Resource::Name("snake".into(), alias("snake.")),
        Resource::Name("many".into(), name(&many.iter().map(String::as_str).collect::<Vec<_>>())),
    ])
}

fn dns(resolvers: Resolvers) -> Dns {
    Dns::new(store(), resolvers, Telemetry::new(TelemetryOptions::default()).unwrap())
}

async fn ask(dns: &Dns, query: &[u8], transport: Transport) -> Message {
    Message::from_vec(&dns.answer(query, transport).await.unwrap()).unwrap()
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|it| it.data.to_string()).collect()
}

#[tokio::test]
async fn names_of_the_mesh_have_their_addresses() {
    let dns = dns(Resolvers::default());
    let reply = ask(&dns, &bytes("Reviews.", RecordType::A), Transport::Udp).await;
    assert_eq!(reply.metadata.id, 4711);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert!(reply.metadata.recursion_desired && reply.metadata.recursion_available);
    assert_eq!(addresses(&reply), ["240.240.0.5"]);
    assert_eq!(reply.answers[0].ttl, 30);
    // With the spelling of the question.
    assert_eq!(reply.answers[0].name.to_ascii(), "Reviews.");
    let reply = ask(&dns, &bytes("reviews.", RecordType::AAAA), Transport::Udp).await;
    assert_eq!(addresses(&reply), ["fd00:6d65:7368::5"]);
    let reply = ask(&dns, &bytes("reviews.", RecordType::ANY), Transport::Udp).await;
    assert_eq!(reply.answers.len(), 2);
}

#[tokio::test]
async fn a_name_without_such_a_record_is_no_error() {
    let dns = dns(Resolvers::default());
    use RecordType::{AAAA, CAA, HTTPS, MX, NAPTR, NS, PTR, SOA, SRV, TXT};
    for kind in [AAAA, CAA, HTTPS, MX, NAPTR, NS, PTR, SOA, SRV, TXT, RecordType::Unknown(65280)] {
        let reply = ask(&dns, &bytes("four.only.", kind), Transport::Udp).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{kind}");
        assert!(reply.answers.is_empty());
    }
}

#[tokio::test]
async fn other_names_fail_without_a_resolver() {
    let dns = dns(Resolvers::default());
    let reply = ask(&dns, &bytes("example.com.", RecordType::A), Transport::Udp).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(reply.queries.len(), 1);
}

#[tokio::test]
async fn long_replies_are_cut_over_udp_by_what_the_client_takes() {
    let dns = dns(Resolvers::default());
    let reply = ask(&dns, &bytes("many.", RecordType::A), Transport::Udp).await;
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    let reply = ask(&dns, &bytes("many.", RecordType::A), Transport::Tcp).await;
    assert!(!reply.metadata.truncation);
    assert_eq!(reply.answers.len(), 60);
    let mut large = query("many.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    large.set_edns(edns);
    let reply = ask(&dns, &large.to_vec().unwrap(), Transport::Udp).await;
    assert_eq!(reply.answers.len(), 60);
    assert!(reply.edns.is_some());
}

#[tokio::test]
async fn an_unknown_version_of_edns_is_refused() {
    let mut query = query("reviews.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    query.set_edns(edns);
    let reply = ask(&dns(Resolvers::default()), &query.to_vec().unwrap(), Transport::Udp).await;
    // BADVERS; TSIG has the same number for BADSIG.
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert!(reply.answers.is_empty());
}

#[tokio::test]
async fn what_is_no_query_gets_no_answer_or_an_error() {
    let dns = dns(Resolvers::default());
    assert!(dns.answer(b"", Transport::Udp).await.is_none());
    assert!(dns.answer(b"short", Transport::Udp).await.is_none());
    let mut response = query("reviews.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert!(dns.answer(&response.to_vec().unwrap(), Transport::Udp).await.is_none());
    let mut garbage = bytes("reviews.", RecordType::A);
    garbage.truncate(garbage.len() - 3);
    let reply = ask(&dns, &garbage, Transport::Udp).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
    let mut update = query("reviews.", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    let reply = ask(&dns, &update.to_vec().unwrap(), Transport::Udp).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NotImp);
}

/// A resolver that answers `example.com` with 192.0.2.1 and says "cut off" over UDP for `long.example`; it lies first.
async fn resolver() -> SocketAddr {
    let sockets = DnsSockets::bind(0).unwrap();
    let address = sockets.address().unwrap();
    let (udp, tcp) = (sockets.udp.into_iter().next().unwrap(), sockets.tcp.into_iter().next().unwrap());
    let reply = |query: &[u8], cut: bool| {
        let query = Message::from_vec(query).unwrap();
        let mut reply = Message::response(query.metadata.id, OpCode::Query);
        reply.queries.clone_from(&query.queries);
        let name = query.queries[0].name().clone();
        reply.metadata.truncation = cut && name.to_ascii().starts_with("long");
        if !reply.metadata.truncation {
            reply.add_answer(Record::from_rdata(name, 1, RData::A(A::new(192, 0, 2, 1))));
        }
        reply
    };
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
            let right = reply(&buffer[..length], true);
            let mut wrong_id = right.clone();
            wrong_id.metadata.id ^= 1;
            let mut wrong_question = right.clone();
            wrong_question.queries = query("evil.example.", RecordType::A).queries;
            for message in [wrong_id, wrong_question, right] {
                udp.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let query = read_framed(&mut stream).await.unwrap().unwrap();
            let reply = reply(&query, false).to_vec().unwrap();
            stream.write_u16(u16::try_from(reply.len()).unwrap()).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    });
    address
}

async fn connected(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    socket
}

async fn inherited(address: SocketAddr) -> Inherited {
    Inherited { udp: connected(address).await, whole: None }
}

#[tokio::test]
async fn other_names_are_forwarded_and_false_replies_ignored() {
    let address = resolver().await;
    for resolvers in [Resolvers::new(vec![address], None), Resolvers::new(vec![], Some(inherited(address).await))] {
        let dns = dns(resolvers);
        let reply = ask(&dns, &bytes("example.com.", RecordType::A), Transport::Udp).await;
        assert_eq!(reply.metadata.id, 4711);
        assert_eq!(addresses(&reply), ["192.0.2.1"]);
        // PTR and the like are never the mesh's.
        let reply = ask(&dns, &bytes("5.0.240.240.in-addr.arpa.", RecordType::PTR), Transport::Udp).await;
        assert_eq!(reply.answers.len(), 1);
    }
}

#[tokio::test]
async fn what_an_alias_stands_for_comes_with_it() {
    let dns = dns(Resolvers::new(vec![resolver().await], None));
    let names = |message: &Message| message.answers.iter().map(|it| it.name.to_ascii()).collect::<Vec<_>>();
    // Of the mesh, through another alias; each name is the question that was asked of it.
    let reply = ask(&dns, &bytes("Old.", RecordType::A), Transport::Udp).await;
    assert_eq!(names(&reply), ["Old.", "older.", "Reviews."]);
    assert_eq!(addresses(&reply), ["older.", "Reviews.", "240.240.0.5"]);
    assert_eq!((reply.metadata.id, reply.queries[0].name().to_ascii().as_str()), (4711, "Old."));
    // Of the host's resolver.
    let reply = ask(&dns, &bytes("db.", RecordType::A), Transport::Udp).await;
    assert_eq!(addresses(&reply), ["db.example.com.", "192.0.2.1"]);
    // Who asks for the alias has it.
    let reply = ask(&dns, &bytes("db.", RecordType::CNAME), Transport::Udp).await;
    assert_eq!(addresses(&reply), ["db.example.com."]);
    // One that stands for itself.
    let reply = ask(&dns, &bytes("snake.", RecordType::A), Transport::Udp).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(reply.answers.len(), MAX_ALIASES);
}

#[tokio::test]
async fn a_reply_that_was_cut_off_is_fetched_whole_for_tcp() {
    let dns = dns(Resolvers::new(vec![resolver().await], None));
    let reply = ask(&dns, &bytes("long.example.", RecordType::A), Transport::Udp).await;
    assert!(reply.metadata.truncation);
    let reply = ask(&dns, &bytes("long.example.", RecordType::A), Transport::Tcp).await;
    assert_eq!(addresses(&reply), ["192.0.2.1"]);
}

/// Where the resolver cannot be reached from here, somebody else asks it over TCP.
#[tokio::test]
async fn a_reply_that_was_cut_off_comes_whole_through_inherited_sockets_too() {
    let udp = connected(resolver().await).await;
    let (whole, outside) = tokio::net::UnixDatagram::pair().unwrap();
    let dns = dns(Resolvers::new(vec![], Some(Inherited { udp, whole: Some(whole) })));
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let length = outside.recv(&mut buffer).await.unwrap();
        let query = Message::from_vec(&buffer[..length]).unwrap();
        let mut reply = Message::response(query.metadata.id, OpCode::Query);
        reply.queries.clone_from(&query.queries);
        for number in 0..2000 {
            let [high, low] = u16::to_be_bytes(number);
            let address = RData::A(A::new(198, 18, high, low));
            reply.add_answer(Record::from_rdata(query.queries[0].name().clone(), 1, address));
        }
        outside.send(&reply.to_vec().unwrap()).await.unwrap();
    });
    let reply = ask(&dns, &bytes("long.example.", RecordType::A), Transport::Udp).await;
    assert!(reply.metadata.truncation);
    let reply = ask(&dns, &bytes("long.example.", RecordType::A), Transport::Tcp).await;
    assert_eq!((reply.metadata.id, reply.answers.len(), reply.metadata.truncation), (4711, 2000, false));
}

#[test]
fn a_resolvers_reply_is_cut_to_what_the_client_takes() {
    let mut reply = query("many.example.", RecordType::A);
    reply.metadata.message_type = MessageType::Response;
    for number in 0..60 {
        let address = RData::A(A::new(192, 0, 2, number));
        reply.add_answer(Record::from_rdata(reply.queries[0].name().clone(), 1, address));
    }
    let reply = reply.to_vec().unwrap();
    let cut = |size: Option<u16>| {
        let mut query = query("many.example.", RecordType::A);
        if let Some(size) = size {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            query.set_edns(edns);
        }
        let fitting = message::for_udp(reply.clone(), &query.to_vec().unwrap()).unwrap();
        assert!(fitting.len() <= usize::from(size.unwrap_or(512)));
        Message::from_vec(&fitting).unwrap().metadata.truncation
    };
    assert!(cut(None) && cut(Some(800)) && !cut(Some(1232)));
}

#[tokio::test]
async fn the_next_resolver_is_asked_when_one_is_gone() {
    let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dns = dns(Resolvers::new(vec![gone, resolver().await], None));
    let reply = ask(&dns, &bytes("example.com.", RecordType::A), Transport::Udp).await;
    assert_eq!(addresses(&reply), ["192.0.2.1"]);
}

#[tokio::test]
async fn many_queries_share_one_connected_socket() {
    let address = resolver().await;
    let dns = Arc::new(dns(Resolvers::new(vec![], Some(inherited(address).await))));
    let mut tasks = JoinSet::new();
    for i in 0..20 {
        let dns = dns.clone();
        tasks.spawn(async move {
            let name = format!("host-{i}.example.");
            let reply = ask(&dns, &bytes(&name, RecordType::A), Transport::Udp).await;
            assert_eq!(reply.answers[0].name.to_ascii(), name);
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn both_transports_are_served() {
    let sockets = DnsSockets::bind(0).unwrap();
    let address = sockets.address().unwrap();
    let serving = tokio::spawn(Arc::new(dns(Resolvers::default())).serve(sockets));
    let client = connected(address).await;
    client.send(b"garbage").await.unwrap();
    client.send(&bytes("reviews.", RecordType::A)).await.unwrap();
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).await.unwrap();
    assert_eq!(addresses(&Message::from_vec(&buffer[..length]).unwrap()), ["240.240.0.5"]);

    let mut stream = TcpStream::connect(address).await.unwrap();
    for _ in 0..2 {
        let query = bytes("many.", RecordType::A);
        stream.write_u16(u16::try_from(query.len()).unwrap()).await.unwrap();
        stream.write_all(&query).await.unwrap();
        let reply = read_framed(&mut stream).await.unwrap().unwrap();
        assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 60);
    }
    serving.abort();
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600), is_query in any::<bool>()) {
        if is_query && bytes.len() >= 12 {
            bytes[2] = 1;
            bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        }
        match Query::read(&bytes) {
            Query::Refuse(reply) => {
                prop_assert_eq!(&reply[..2], &bytes[..2]);
                prop_assert!(reply[2] & 0x80 != 0);
                prop_assert!(Message::from_vec(&reply).is_ok());
            }
            Query::Name { message, .. } => {
                let name = Name { addresses: vec!["10.0.0.1".parse().unwrap()], ttl_seconds: 1, canonical: String::new(), alias: None };
                prop_assert!(Answer::new(&message, &name).encode(message::udp_limit(&message)).is_some());
            }
            Query::Ignore | Query::Other => {}
        }
        message::answers(&bytes, &bytes);
    }

    #[test]
    fn damaged_queries_never_panic(at in 0usize..60, value in any::<u8>()) {
        let mut bytes = bytes("reviews.default.svc.cluster.local.", RecordType::A);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        if let Query::Refuse(reply) = Query::read(&bytes) {
            prop_assert!(reply.len() >= 12);
        }
    }
}
