//! Valid input that was damaged: it gets further into a parser than random bytes do.

use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize, usize),
    Cut(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"\0\x01\x7f\x80\xff \t\n\r:/.,-{}[]\"'%*0129".to_vec())];
    let bytes = prop::collection::vec(byte.clone(), 1..8);
    prop_oneof![
        4 => (any::<Index>(), byte).prop_map(|(at, byte)| Damage::Set(at, byte)),
        3 => (any::<Index>(), bytes).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        3 => (any::<Index>(), 1_usize..16).prop_map(|(at, length)| Damage::Remove(at, length)),
        2 => (any::<Index>(), 1_usize..64, 1_usize..8).prop_map(|(at, length, times)| Damage::Repeat(at, length, times)),
        1 => any::<Index>().prop_map(Damage::Cut),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let piece = |at: &Index, length: usize| {
        let start = at.index(bytes.len());
        start..(start + length).min(bytes.len())
    };
    match damage {
        Damage::Set(at, byte) => *at.get_mut(bytes) = *byte,
        Damage::Insert(at, new) => drop(bytes.splice(piece(at, 0), new.iter().copied())),
        Damage::Remove(at, length) => drop(bytes.drain(piece(at, *length))),
        Damage::Repeat(at, length, times) => {
            let range = piece(at, *length);
            let again = bytes[range.clone()].repeat(*times);
            drop(bytes.splice(range.end..range.end, again));
        }
        Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
    }
}

/// One of these, damaged up to six times.
pub fn damaged(valid: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (prop::sample::select(valid), prop::collection::vec(damage(), 0..6)).prop_map(|(mut bytes, damages)| {
        damages.iter().for_each(|damage| apply(&mut bytes, damage));
        bytes
    })
}
