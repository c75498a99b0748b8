//! Mutations of bytes that know nothing about the format.

use super::Dice;

/// Applies a few random mutations: flipped, overwritten, cut, repeated and inserted bytes.
pub fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>) {
    for _ in 0..1 + dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        let run = 1 + dice.below(16);
        let end = (at + run).min(bytes.len());
        match dice.below(7) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            3 => {
                let odd = dice.odd_number(0).to_le_bytes();
                bytes.splice(at..end, odd);
            }
            4 => {
                let fill = *dice.pick(&[0u8, 0xff, b'0', b'9', b'"', b'[', 0x80]);
                bytes[at..end].fill(fill);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
                }
            }
        }
    }
}
