//! Where requests begin and end in what an HTTP/1 client sends.
//!
//! In: the bytes that hyper reads, as they come. Out: which request is written in a way that another parser may read as
//! other requests than hyper does. hyper decides what the requests are, and what goes on is written anew; but it is lenient
//! where lenience was once usual (a line that ends with LF alone, a length beside chunks, equal lengths), and after parsing
//! nobody can see any more how it was written. So it is read along here by RFC 9112 to the letter, and where that fails,
//! the request is refused and the connection ends.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// The head of a request, with what is before it.
pub(super) const MAX_HEAD: usize = 64 << 10;
/// The length of a chunk, with its extensions.
const MAX_CHUNK_LINE: usize = 1 << 10;
/// Digits of a length, and of a chunk's: no number of more is one of bytes.
const MAX_DIGITS: usize = 18;
const MAX_CHUNK_DIGITS: usize = 15;

/// What both sides know of a connection's requests, which are counted from zero.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    /// Heads that were read along, plus one; 0 where nobody reads along.
    heads: AtomicU64,
    /// Requests that hyper has found.
    begun: AtomicU64,
    /// The first request that is refused, and why. Nothing after it has been looked at.
    flaw: OnceLock<(u64, &'static str)>,
    /// What the last byte was part of: [`BETWEEN`], [`BEFORE_HEAD`], [`IN_HEAD`] or [`AFTER_HEAD`].
    place: AtomicU8,
}

/// No request, or the last one of one.
const BETWEEN: u8 = 0;
/// Empty lines, which are nothing.
const BEFORE_HEAD: u8 = 1;
/// Or what is not looked at any more, of which hyper may go on to wait for the end.
const IN_HEAD: u8 = 2;
const AFTER_HEAD: u8 = 3;

impl Framing {
    /// Counts a request that hyper has found. Returns why it must be refused.
    pub(crate) fn begin(&self) -> Option<&'static str> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let heads = self.heads.load(Ordering::Relaxed).checked_sub(1)?;
        match self.flaw.get() {
            Some(&(first, flaw)) if number >= first => Some(flaw),
            // hyper sees a request where none ends.
            None if number >= heads => Some("where the request ends is not clear"),
            _ => None,
        }
    }

    /// Whether a head has begun that has not ended.
    pub(super) fn is_in_head(&self) -> bool {
        self.place.load(Ordering::Relaxed) == IN_HEAD
    }

    /// The same, or something has come that may stand before one.
    pub(super) fn is_before_body(&self) -> bool {
        matches!(self.place.load(Ordering::Relaxed), BEFORE_HEAD | IN_HEAD)
    }

    /// Whether there is nothing of a request that hyper has not found. False only where somebody reads along.
    pub(super) fn is_between(&self) -> bool {
        let heads = self.heads.load(Ordering::Relaxed).saturating_sub(1);
        self.place.load(Ordering::Relaxed) <= BEFORE_HEAD && self.begun.load(Ordering::Relaxed) >= heads
    }
}

/// Reads along.
#[derive(Debug)]
pub(super) struct Reader {
    state: State,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    head: Head,
    /// Heads that have ended.
    heads: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Before or in a head.
    Head,
    /// This much of a body is to come.
    Body(u64),
    ChunkLength,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// A flaw was found.
    Over,
}

/// What there is of a head.
#[derive(Debug, Default)]
struct Head {
    bytes: usize,
    begun: bool,
    length: Option<u64>,
    chunked: bool,
}

impl Reader {
    pub(super) fn new(framing: &Framing) -> Self {
        framing.heads.store(1, Ordering::Relaxed);
        Self { state: State::Head, line: Vec::new(), head: Head::default(), heads: 0 }
    }

    /// Takes what has just been read. An error ends the connection: what is wrong is in a body of which part has gone on.
    pub(super) fn read(&mut self, bytes: &[u8], framing: &Framing) -> io::Result<()> {
        let read = self.read_on(bytes, framing);
        framing.place.store(self.place(), Ordering::Relaxed);
        read
    }

    fn place(&self) -> u8 {
        match self.state {
            State::Head if !self.line.is_empty() || self.head.begun => IN_HEAD,
            State::Head if self.head.bytes == 0 => BETWEEN,
            State::Head => BEFORE_HEAD,
            State::Over => IN_HEAD,
            State::Body(_) | State::ChunkLength | State::Chunk(_) | State::ChunkEnd | State::Trailers => AFTER_HEAD,
        }
    }

    fn read_on(&mut self, mut bytes: &[u8], framing: &Framing) -> io::Result<()> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Over => return Ok(()),
                State::Body(left) | State::Chunk(left) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= n as u64;
                    bytes = &bytes[n..];
                    if *left == 0 {
                        self.state = if matches!(self.state, State::Body(_)) { State::Head } else { State::ChunkEnd };
                    }
                }
                State::Head | State::ChunkLength | State::ChunkEnd | State::Trailers => {
                    let end = bytes.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
                    let (now, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
                    bytes = rest;
                    if let Err(flaw) = self.piece(now, end.is_some(), framing) {
                        return self.refuse(flaw, framing);
                    }
                }
            }
        }
        Ok(())
    }

    /// The request that is being read, or whose body is, is refused; if that is too late, the connection ends.
    fn refuse(&mut self, flaw: &'static str, framing: &Framing) -> io::Result<()> {
        let in_head = std::mem::replace(&mut self.state, State::Over) == State::Head;
        self.line = Vec::new();
        let number = if in_head { self.heads } else { self.heads - 1 };
        if framing.begun.load(Ordering::Relaxed) > number {
            return Err(io::Error::new(io::ErrorKind::InvalidData, flaw));
        }
        // There is one only: nothing is looked at after it.
        let _ = framing.flaw.set((number, flaw));
        Ok(())
    }
}

impl Reader {
    /// A part of a line, or with `ends` the end of it.
    fn piece(&mut self, piece: &[u8], ends: bool, framing: &Framing) -> Result<(), &'static str> {
        let limit = match self.state {
            State::Head | State::Trailers => MAX_HEAD.saturating_sub(self.head.bytes),
            _ => MAX_CHUNK_LINE,
        };
        if self.line.len() + piece.len() > limit {
            return Err("too long");
        }
        if !ends {
            self.line.extend_from_slice(piece);
            return Ok(());
        }
        if self.line.is_empty() {
            return self.whole_line(piece, framing);
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(piece);
        let taken = self.whole_line(&line, framing);
        line.clear();
        self.line = line;
        taken
    }

    fn whole_line(&mut self, line: &[u8], framing: &Framing) -> Result<(), &'static str> {
        let Some(text) = line.strip_suffix(b"\r\n") else { return Err("a line that ends without CR") };
        if text.iter().any(|byte| matches!(byte, b'\r' | b'\0')) {
            return Err("CR or NUL in a line");
        }
        match self.state {
            State::Head => self.head_line(text, framing),
            State::ChunkLength => {
                self.state = match chunk_length(text)? {
                    0 => State::Trailers,
                    length => State::Chunk(length),
                };
                Ok(())
            }
            State::ChunkEnd => {
                self.state = State::ChunkLength;
                if text.is_empty() { Ok(()) } else { Err("a chunk that is longer than it says") }
            }
            State::Trailers => {
                self.head.bytes += line.len();
                if text.is_empty() {
                    self.next_head();
                    return Ok(());
                }
                match field(text)?.0 {
                    name if is(name, b"content-length") || is(name, b"transfer-encoding") => {
                        Err("a length in trailers")
                    }
                    _ => Ok(()),
                }
            }
            State::Body(_) | State::Chunk(_) | State::Over => Ok(()),
        }
    }

    fn head_line(&mut self, text: &[u8], framing: &Framing) -> Result<(), &'static str> {
        let head = &mut self.head;
        head.bytes += text.len() + 2;
        if !head.begun {
            // Empty lines before a request are nothing (RFC 9112, 2.2).
            head.begun = !text.is_empty();
            return Ok(());
        }
        if text.is_empty() {
            return self.end_of_head(framing);
        }
        let (name, value) = field(text)?;
        if is(name, b"content-length") {
            if head.length.replace(length(value)?).is_some() {
                return Err("more than one length");
            }
        } else if is(name, b"transfer-encoding") {
            if !is(value, b"chunked") {
                return Err("a transfer coding other than chunked");
            }
            if std::mem::replace(&mut head.chunked, true) {
                return Err("chunked more than once");
            }
        }
        Ok(())
    }

    fn end_of_head(&mut self, framing: &Framing) -> Result<(), &'static str> {
        let state = match (self.head.length, self.head.chunked) {
            (Some(_), true) => return Err("a length beside chunks"),
            (None | Some(0), false) => State::Head,
            (Some(length), false) => State::Body(length),
            (None, true) => State::ChunkLength,
        };
        self.heads += 1;
        framing.heads.store(self.heads + 1, Ordering::Relaxed);
        self.next_head();
        self.state = state;
        Ok(())
    }

    fn next_head(&mut self) {
        self.head = Head::default();
        self.state = State::Head;
    }
}

fn is(text: &[u8], lower_case: &[u8]) -> bool {
    text.eq_ignore_ascii_case(lower_case)
}

/// Name and value, RFC 9112, 5. A line that goes on the one before it has no name.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let colon = line.iter().position(|&byte| byte == b':').ok_or("a header without a colon")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if name.is_empty() || !name.iter().all(token) {
        return Err("a header's name that is none");
    }
    Ok((name, trim(value)))
}

/// Without spaces and tabs around it; nothing else is white space here.
fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

fn length(value: &[u8]) -> Result<u64, &'static str> {
    const INVALID: &str = "a length that is no number";
    if value.is_empty() || value.len() > MAX_DIGITS || !value.iter().all(u8::is_ascii_digit) {
        return Err(INVALID);
    }
    Ok(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// RFC 9112, 7.1. Extensions have no meaning to anybody here, and do not go on.
fn chunk_length(line: &[u8]) -> Result<u64, &'static str> {
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let after = &line[digits..];
    if digits == 0 || digits > MAX_CHUNK_DIGITS || !(after.is_empty() || trim(after).first() == Some(&b';')) {
        return Err("a chunk's length that is no number");
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(16).unwrap_or_default();
    Ok(line[..digits].iter().fold(0, |number, byte| number * 16 + u64::from(digit(byte))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\n";

    /// Reads it in pieces of this size, with hyper finding a request as soon as its head has come. The heads, and what is wrong.
    fn read(text: &[u8], piece: usize) -> (u64, Option<String>) {
        let framing = Framing::default();
        let mut reader = Reader::new(&framing);
        for piece in text.chunks(piece) {
            if let Err(error) = reader.read(piece, &framing) {
                return (reader.heads, Some(error.to_string()));
            }
            while framing.flaw.get().is_none() && framing.begun.load(Ordering::Relaxed) < reader.heads {
                assert_eq!(framing.begin(), None);
            }
        }
        (reader.heads, framing.flaw.get().map(|(_, flaw)| (*flaw).to_owned()))
    }

    #[test]
    fn requests_are_told_apart_however_they_come() {
        let two = format!(
            "{HEAD}Content-Length: 3\r\n\r\nab\n\r\n{HEAD}Transfer-Encoding: Chunked\r\n\r\n3;a=\"b\"\r\n\r\n\n\r\n0\r\nx-sum: 1\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        );
        for piece in 1..two.len() {
            assert_eq!(read(two.as_bytes(), piece), (3, None), "{piece}");
        }
    }

    #[test]
    fn it_is_known_what_has_begun() {
        let framing = Framing::default();
        let mut reader = Reader::new(&framing);
        assert!(framing.is_between() && !framing.is_in_head());
        for (text, found, in_head, between) in [
            ("\r\n", 0, false, true),
            ("\r", 0, true, false),
            ("\nGET / HTTP/1.1\r\n", 0, true, false),
            ("a: b\r\n\r\n", 0, false, false),
            ("", 1, false, true),
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\na", 2, false, false),
            ("b", 2, false, true),
            ("GET / HTTP/1.1\r\n\r\nG", 3, true, false),
            ("ET / HTTP/1.1\n", 3, true, false),
        ] {
            reader.read(text.as_bytes(), &framing).unwrap();
            while framing.begun.load(Ordering::Relaxed) < found {
                framing.begin();
            }
            assert_eq!((framing.is_in_head(), framing.is_between()), (in_head, between), "{text:?}");
        }
    }

    #[test]
    fn what_could_be_read_otherwise_is_a_flaw() {
        for (rest, flaw) in [
            ("\n", "without CR"),
            ("a: b\n\r\n", "without CR"),
            ("a: b\rc: d\r\n\r\n", "CR or NUL"),
            ("a: b\0\r\n\r\n", "CR or NUL"),
            ("a: b\r\n c\r\n\r\n", "colon"),
            ("a: b\r\n c: d\r\n\r\n", "name"),
            ("a : b\r\n\r\n", "name"),
            (": b\r\n\r\n", "name"),
            ("Content-Length: 1\r\nContent-Length: 1\r\n\r\n", "more than one"),
            ("Content-Length: 1, 1\r\n\r\n", "no number"),
            ("Content-Length: +1\r\n\r\n", "no number"),
            ("Content-Length: -1\r\n\r\n", "no number"),
            ("Content-Length: 0x1\r\n\r\n", "no number"),
            ("Content-Length:\r\n\r\n", "no number"),
            ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "beside chunks"),
            ("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", "beside chunks"),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "more than once"),
            ("Transfer-Encoding: gzip, chunked\r\n\r\n", "other than chunked"),
            ("Transfer-Encoding: \x0bchunked\r\n\r\n", "other than chunked"),
            ("Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", "without CR"),
            ("Transfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n", "no number"),
            ("Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", "no number"),
            ("Transfer-Encoding: chunked\r\n\r\n1;a\rb\r\na\r\n0\r\n\r\n", "CR or NUL"),
            ("Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", "longer than it says"),
            ("Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n", "in trailers"),
        ] {
            for piece in [1, 7, 1000] {
                let (_, found) = read(format!("{HEAD}{rest}").as_bytes(), piece);
                assert!(found.as_ref().is_some_and(|it| it.contains(flaw)), "{rest:?} in pieces of {piece}: {found:?}");
            }
        }
        let long = format!("{HEAD}a: {}", "b".repeat(MAX_HEAD));
        assert_eq!(read(long.as_bytes(), 1000).1.as_deref(), Some("too long"));
        let extension = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n1;{}", "b".repeat(MAX_CHUNK_LINE));
        assert_eq!(read(extension.as_bytes(), 1000).1.as_deref(), Some("too long"));
    }

    #[test]
    fn a_request_that_only_hyper_sees_is_refused() {
        let framing = Framing::default();
        let mut reader = Reader::new(&framing);
        reader.read(HEAD.as_bytes(), &framing).unwrap();
        assert!(framing.begin().is_some());
        // Over HTTP/2 nobody reads along.
        assert_eq!(Framing::default().begin(), None);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in "(GET / HTTP/1.1|a: b|content-length: 3|transfer-encoding: chunked|3|0|\r\n|\r\n|\r|\n| |xyz){0,20}", piece in 1usize..9) {
            prop_assert_eq!(read(text.as_bytes(), piece).1.is_some(), read(text.as_bytes(), 1000).1.is_some());
        }
    }
}
