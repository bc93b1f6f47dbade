//! DNS messages without I/O: what a query asks, and replies to it.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name as DnsName, RData, Record, RecordType};

use crate::config::Name;

pub(super) const HEADER: usize = 12;
/// What a client without EDNS can take over UDP, RFC 1035 section 4.2.1.
const PLAIN_UDP: u16 = 512;
/// What we take and send over UDP without fragments.
const EDNS_UDP: u16 = 1232;

/// What to do with a datagram.
#[derive(Debug)]
pub(crate) enum Query {
    /// It is no query: a reply to it would only help to deceive somebody.
    Ignore,
    /// It cannot be answered; this is the reply.
    Refuse(Vec<u8>),
    /// It asks for what the mesh may know by this name, lower case and without the trailing dot.
    Name { name: String, message: Box<Message> },
    /// It is for the resolver of the host.
    Other,
}

impl Query {
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let Some(header) = bytes.get(..HEADER) else { return Self::Ignore };
        if header[2] & 0x80 != 0 {
            return Self::Ignore;
        }
        let message = match Message::from_vec(bytes) {
            Ok(message) => message,
            Err(_) => return Self::Refuse(error(bytes, ResponseCode::FormErr)),
        };
        if message.metadata.op_code != OpCode::Query {
            return Self::Refuse(error(bytes, ResponseCode::NotImp));
        }
        let [query] = &message.queries[..] else { return Self::Refuse(error(bytes, ResponseCode::FormErr)) };
        // Whatever the type: a name of the mesh has no records but addresses, and the host's resolver, which does not know
        // the name, would say that it does not exist.
        if query.query_class() != DNSClass::IN {
            return Self::Other;
        }
        match host_name(query.name()) {
            Some(name) => Self::Name { name, message: Box::new(message) },
            None => Self::Other,
        }
    }
}

/// The same question about what the name stands for. `None`: whoever asks for the alias itself has all with that.
pub(super) fn about(alias: &DnsName, query: &Message) -> Option<Vec<u8>> {
    let kind = query.queries.first()?.query_type();
    if kind == RecordType::CNAME {
        return None;
    }
    let mut message = Message::new(query.metadata.id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(alias.clone(), kind));
    message.to_vec().ok()
}

/// The reply for a name of the mesh.
pub(crate) struct Answer {
    message: Message,
}

impl Answer {
    /// Its addresses of the kind that was asked for, or none.
    pub(crate) fn new(query: &Message, name: &Name) -> Self {
        let mut answer = Self::begin(query);
        if let Some(question) = query.queries.first().filter(|_| answer.is_well()) {
            for address in &name.addresses {
                let data = match (question.query_type(), address) {
                    (RecordType::A | RecordType::ANY, IpAddr::V4(address)) => RData::A(A::from(*address)),
                    (RecordType::AAAA | RecordType::ANY, IpAddr::V6(address)) => RData::AAAA(AAAA::from(*address)),
                    _ => continue,
                };
                answer.add(question, name.ttl_seconds, data);
            }
        }
        answer
    }

    /// The name that it stands for, and what was found about that one.
    pub(super) fn alias(query: &Message, name: &Name, alias: &DnsName, found: Option<Message>) -> Self {
        let mut answer = Self::begin(query);
        if let Some(question) = query.queries.first().filter(|_| answer.is_well()) {
            answer.add(question, name.ttl_seconds, RData::CNAME(CNAME(alias.clone())));
            if let Some(found) = found {
                // RFC 6604: the code tells about the last name of the chain.
                answer.message.metadata.response_code = found.metadata.response_code;
                answer.message.answers.extend(found.answers);
                answer.message.authorities = found.authorities;
            }
        }
        answer
    }

    /// With the question's own spelling: clients that vary it check that it comes back.
    fn add(&mut self, question: &Question, ttl_seconds: u32, data: RData) {
        self.message.add_answer(Record::from_rdata(question.name().clone(), ttl_seconds, data));
    }

    fn is_well(&self) -> bool {
        self.message.metadata.response_code == ResponseCode::NoError
    }

    /// Without records yet.
    fn begin(query: &Message) -> Self {
        let mut metadata = Metadata::response_from_request(&query.metadata);
        metadata.authoritative = true;
        metadata.recursion_available = true;
        let mut message = Message::new(metadata.id, MessageType::Response, OpCode::Query);
        message.metadata = metadata;
        message.queries.clone_from(&query.queries);
        if let Some(edns) = &query.edns {
            let mut reply = Edns::new();
            reply.set_max_payload(EDNS_UDP);
            // RFC 6891 section 6.1.3: we know version 0 only.
            if edns.version() > 0 {
                message.metadata.response_code = ResponseCode::BADVERS;
            }
            message.set_edns(reply);
        }
        Self { message }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.message.answers.is_empty()
    }

    /// The reply in at most `limit` bytes; one that does not fit says so, and the client asks again over TCP.
    pub(crate) fn encode(&self, limit: u16) -> Option<Vec<u8>> {
        let whole = self.message.to_vec().ok()?;
        if whole.len() <= usize::from(limit) { Some(whole) } else { self.message.truncate().to_vec().ok() }
    }
}

/// How long a reply over UDP may be.
pub(crate) fn udp_limit(query: &Message) -> u16 {
    query.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().clamp(PLAIN_UDP, EDNS_UDP))
}

/// A resolver's reply to `query` as its client may have it over UDP: one that is longer than it takes is cut off, and says so.
/// `None`: it cannot be read.
pub(crate) fn for_udp(reply: Vec<u8>, query: &[u8]) -> Option<Vec<u8>> {
    let takes = |query: Message| query.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().max(PLAIN_UDP));
    let limit = Message::from_vec(query).map_or(PLAIN_UDP, takes);
    if reply.len() <= usize::from(limit) {
        return Some(reply);
    }
    Message::from_vec(&reply).ok()?.truncate().to_vec().ok()
}

/// A reply without records to the query in `bytes`, which has a header; with its question where it has just one.
pub(super) fn error(bytes: &[u8], code: ResponseCode) -> Vec<u8> {
    let question = question(bytes).unwrap_or_default();
    let mut reply = Vec::with_capacity(HEADER + question.len());
    reply.extend_from_slice(&bytes[..HEADER]);
    // A response with the operation and "recursion desired" of the query.
    reply[2] = 0x80 | (reply[2] & 0x79);
    reply[3] = 0x80 | code.low();
    let count = u8::from(!question.is_empty());
    reply[4..HEADER].copy_from_slice(&[0, count, 0, 0, 0, 0, 0, 0]);
    reply.extend_from_slice(question);
    reply
}

/// The bytes of the question section, where it holds one question without compression.
pub(super) fn question(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.get(4..6)? != [0, 1] {
        return None;
    }
    let mut end = HEADER;
    loop {
        match usize::from(*bytes.get(end)?) {
            0 => break,
            label @ 1..=63 => end += 1 + label,
            _ => return None,
        }
    }
    bytes.get(HEADER..end + 5)
}

/// Whether `reply` answers `query`: the same id and the same question.
pub(crate) fn answers(reply: &[u8], query: &[u8]) -> bool {
    reply.len() >= HEADER
        && reply[2] & 0x80 != 0
        && reply[..2] == query[..2]
        // A server that did not understand the query may leave the question out.
        && match (question(reply), question(query)) {
            (Some(reply), Some(query)) => reply.eq_ignore_ascii_case(query),
            (None, _) => reply[4..6] == [0, 0] && reply[3] & 0x0f != 0,
            (Some(_), None) => false,
        }
}

pub(crate) fn is_truncated(reply: &[u8]) -> bool {
    reply.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// The name in lower case, if it is one that a host can have.
fn host_name(name: &hickory_proto::rr::Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    (!text.is_empty()).then_some(text)
}
