//! Encoding of nf_tables messages: headers, attributes, one batch. Only bytes; the socket is in [`super::netlink`].

/// The table holds IPv4 and IPv6 rules.
const NFPROTO_INET: u8 = 1;
const SUBSYSTEM_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

/// Attribute flag: the value is attributes.
const NLA_F_NESTED: u16 = 0x8000;
/// What of an attribute's kind is not flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

const HEADER_LENGTH: usize = 16;

/// `NFT_MSG_*`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
}

/// Attributes, one after the other. Numbers are big-endian, as nf_tables wants them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nested(self, kind: u16, value: Attributes) -> Self {
        self.bytes(kind | NLA_F_NESTED, &value.0)
    }

    pub(super) fn encoded(&self) -> &[u8] {
        &self.0
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        // All values here are names, numbers and rules of a few hundred bytes.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// One change of the ruleset.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) kind: Kind,
    pub(super) flags: u16,
    pub(super) attributes: Attributes,
    /// Completes "the kernel refused to ..." and "this kernel cannot ...".
    pub(super) what: String,
    /// The module that is missing if the kernel does not know what this change names.
    pub(super) module: &'static str,
}

/// A transaction: the kernel makes all changes or none. The begin message has sequence number 0, the n-th change
/// (from 0) has n + 1.
pub(super) fn batch(changes: &[Change]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4096);
    let last = u32::try_from(changes.len()).unwrap_or(u32::MAX).saturating_add(1);
    message(&mut bytes, BATCH_BEGIN, NLM_F_REQUEST, 0, 0, SUBSYSTEM_NFTABLES, &[]);
    for (sequence, change) in (1..).zip(changes) {
        let kind = SUBSYSTEM_NFTABLES << 8 | change.kind as u16;
        let flags = NLM_F_REQUEST | NLM_F_ACK | change.flags;
        message(&mut bytes, kind, flags, sequence, NFPROTO_INET, 0, &change.attributes.0);
    }
    message(&mut bytes, BATCH_END, NLM_F_REQUEST, last, 0, SUBSYSTEM_NFTABLES, &[]);
    bytes
}

/// A question outside of any transaction, answered by an object and an [`Answer`].
pub(super) fn question(kind: Kind, attributes: &Attributes) -> Vec<u8> {
    let mut bytes = Vec::new();
    let kind = SUBSYSTEM_NFTABLES << 8 | kind as u16;
    message(&mut bytes, kind, NLM_F_REQUEST | NLM_F_ACK, 0, NFPROTO_INET, 0, &attributes.0);
    bytes
}

/// A question that is answered by all objects there are.
pub(super) fn question_of_all(kind: Kind, attributes: &Attributes) -> Vec<u8> {
    let mut bytes = Vec::new();
    let kind = SUBSYSTEM_NFTABLES << 8 | kind as u16;
    message(&mut bytes, kind, NLM_F_REQUEST | NLM_F_DUMP, 0, NFPROTO_INET, 0, &attributes.0);
    bytes
}

/// `nlmsghdr`, `nfgenmsg`, attributes.
fn message(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attributes: &[u8]) {
    let length = u32::try_from(HEADER_LENGTH + 4 + attributes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    out.extend_from_slice(attributes);
}

/// The kernel's answer to one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) sequence: u32,
    /// 0: done.
    pub(crate) errno: i32,
}

/// Reads the answers in one datagram. Anything that is not an answer is skipped.
pub(crate) fn answers(datagram: &[u8]) -> Vec<Answer> {
    const NLMSG_ERROR: u16 = 2;
    let answer = |(kind, sequence, body): (u16, u32, &[u8])| {
        let code = body.first_chunk::<4>().filter(|_| kind == NLMSG_ERROR)?;
        Some(Answer { sequence, errno: i32::from_ne_bytes(*code).saturating_neg() })
    };
    messages(datagram).filter_map(answer).collect()
}

/// The attributes of the objects of that kind in one datagram.
pub(super) fn objects(datagram: &[u8], kind: Kind) -> Vec<&[u8]> {
    let wanted = SUBSYSTEM_NFTABLES << 8 | kind as u16;
    messages(datagram).filter(|(kind, ..)| *kind == wanted).filter_map(|(.., body)| body.get(4..)).collect()
}

/// Kind, sequence number and body of each message in one datagram.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header = datagram.first_chunk::<HEADER_LENGTH>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let body = datagram.get(HEADER_LENGTH..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

/// Kind and value of each attribute.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of that kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_but_their_length_is_not() {
        let attributes = Attributes::new().string(1, "mesh").u32(2, 1);
        let mut expected = vec![9, 0, 1, 0, b'm', b'e', b's', b'h', 0, 0, 0, 0];
        expected.extend_from_slice(&[8, 0, 2, 0, 0, 0, 0, 1]);
        if cfg!(target_endian = "little") {
            assert_eq!(attributes.0, expected);
        }
    }

    #[test]
    fn a_batch_is_framed_and_numbered() {
        let change = Change {
            kind: Kind::NewTable,
            flags: NLM_F_CREATE,
            attributes: Attributes::new().string(1, "mesh"),
            what: "create the table".into(),
            module: "nf_tables",
        };
        let bytes = batch(&[change.clone(), change]);
        let mut kinds = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            let kind = u16::from_ne_bytes(rest[4..6].try_into().unwrap());
            kinds.push((kind, u32::from_ne_bytes(rest[8..12].try_into().unwrap())));
            rest = &rest[length.next_multiple_of(4)..];
        }
        assert_eq!(kinds, [(0x10, 0), (0x0a00, 1), (0x0a00, 2), (0x11, 3)]);
    }

    #[test]
    fn answers_are_read_and_garbage_is_survived() {
        let mut datagram = Vec::new();
        for (sequence, code) in [(3u32, 0i32), (4, -2)] {
            datagram.extend_from_slice(&36u32.to_ne_bytes());
            datagram.extend_from_slice(&2u16.to_ne_bytes());
            datagram.extend_from_slice(&[0; 2]);
            datagram.extend_from_slice(&sequence.to_ne_bytes());
            datagram.extend_from_slice(&[0; 4]);
            datagram.extend_from_slice(&code.to_ne_bytes());
            datagram.extend_from_slice(&[0; 16]);
        }
        assert_eq!(answers(&datagram), [Answer { sequence: 3, errno: 0 }, Answer { sequence: 4, errno: 2 }]);
        assert_eq!(answers(&datagram[..40]).len(), 1);
        assert_eq!(answers(&[0; 64]), []);
        assert_eq!(answers(&[0xff; 40]), []);
        assert_eq!(attributes(&[0; 64]).count() + attributes(&[0xff; 40]).count(), 0);
    }
}
