//! Mutations of `torch.save` files: of the archive, and of the pickle inside.

use std::io::{Cursor, Read, Write};

use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use super::{Dice, bytes};

/// A parsed archive.
#[derive(Clone, Debug)]
pub struct File {
    members: Vec<(String, Vec<u8>)>,
    compressed: bool,
}

impl File {
    /// Parses a valid file.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut archive = ZipArchive::new(Cursor::new(bytes)).unwrap();
        let members = (0..archive.len()).map(|index| {
            let mut member = archive.by_index(index).unwrap();
            let mut bytes = Vec::new();
            member.read_to_end(&mut bytes).unwrap();
            (member.name().to_owned(), bytes)
        });
        Self { members: members.collect(), compressed: false }
    }

    /// Replaces the pickle.
    pub fn with_pickle(mut self, pickle: Vec<u8>) -> Self {
        *self.pickle() = pickle;
        self
    }

    /// Writes the archive, with correct checksums whatever was changed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        let method = if self.compressed { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        let options = SimpleFileOptions::default().compression_method(method);
        for (name, bytes) in &self.members {
            // The zip writer refuses a duplicate name, so such a member is left out.
            if writer.start_file(name, options).is_ok() {
                writer.write_all(bytes).unwrap();
            }
        }
        writer.finish().unwrap().into_inner()
    }

    fn pickle(&mut self) -> &mut Vec<u8> {
        &mut self.members.iter_mut().find(|(name, _)| name.ends_with("data.pkl")).unwrap().1
    }
}

/// A copy of a file in which the pickle, a member or any bytes are changed.
pub fn mutate(dice: &mut Dice, good: &File) -> Vec<u8> {
    let mut file = good.clone();
    match dice.below(8) {
        0 => bytes::mutate(dice, file.pickle()),
        1..=4 => {
            for _ in 0..1 + dice.below(3) {
                of_instructions(dice, file.pickle());
            }
        }
        5 => {
            let at = dice.below(file.members.len());
            let (name, bytes) = &mut file.members[at];
            match dice.below(4) {
                0 => drop(file.members.remove(at)),
                1 => bytes.truncate(dice.below(bytes.len() + 1)),
                2 => name.push('x'),
                _ => *bytes = b"big".to_vec(),
            }
        }
        6 => file.compressed = true,
        _ => {}
    }
    let mut out = file.to_bytes();
    if dice.once_in(8) {
        bytes::mutate(dice, &mut out);
        // The directory of a zip archive is at its end.
        let end = out.len().saturating_sub(1 + dice.below(4000));
        let mut directory = out.split_off(end);
        bytes::mutate(dice, &mut directory);
        out.extend(directory);
    }
    out
}

/// Changes an operand of the pickle, or inserts instructions in the wrong places.
fn of_instructions(dice: &mut Dice, pickle: &mut Vec<u8>) {
    let small: Vec<usize> =
        (0..pickle.len()).filter(|&at| matches!(pickle[at], b'K' | b'M' | b'h' | b'q')).collect();
    let at = if small.is_empty() { 0 } else { *dice.pick(&small) };
    let odd = dice.odd_number(2);
    let word = (odd as u32).to_le_bytes();
    match dice.below(5) {
        // The operand is a size, an offset or a reference.
        0 if at + 1 < pickle.len() => pickle[at + 1] = odd as u8,
        1 if at + 2 <= pickle.len() => drop(pickle.splice(at..at + 2, [&b"J"[..], &word].concat())),
        2 if at + 2 <= pickle.len() => {
            drop(pickle.splice(at..at + 2, [&b"\x8a\x08"[..], &odd.to_le_bytes()].concat()))
        }
        3 => {
            let anywhere = dice.below(pickle.len() + 1);
            let instruction = *dice.pick(&[
                &b"."[..],
                b"(",
                b"}",
                b")",
                b"]",
                b"t",
                b"\x85",
                b"\x86",
                b"\x87",
                b"R",
                b"Q",
                b"s",
                b"u",
                b"a",
                b"e",
                b"b",
                b"\x94",
                b"h\x00",
                b"q\x00",
                b"N",
                b"X\xff\xff\xff\xff",
                b"cos\nsystem\n",
                b"\x93",
                b"\x81",
                b"0",
                b"2",
            ]);
            pickle.splice(anywhere..anywhere, instruction.repeat(1 + dice.below(3)));
        }
        _ => {
            let names =
                [&b"FloatStorage"[..], b"BFloat16Storage", b"DoubleStorage", b"LongStorage", b"QInt8Storage"];
            let Some(place) = find(pickle, b"torch\n") else { return };
            let from = place + 6;
            let len = pickle[from..].iter().position(|&byte| byte == b'\n').unwrap_or(0);
            pickle.splice(from..from + len, dice.pick(&names).iter().copied());
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A file with `count` tensors that share the same 16,384 values.
pub fn views(count: usize) -> Vec<u8> {
    let storage =
        b"ctorch._utils\n_rebuild_tensor_v2\nq\x00(X\x07\x00\x00\x00storagectorch\nBFloat16Storage\n\
                    X\x01\x00\x00\x000X\x03\x00\x00\x00cpuM\x00@tQq\x01";
    let mut pickle = [&b"\x80\x02"[..], storage, b"}("].concat();
    for index in 0..count {
        let name = format!("{index:08}");
        pickle.extend(
            [&b"X\x08\x00\x00\x00"[..], name.as_bytes(), b"h\x00(h\x01K\x00M\x00@\x85K\x01\x85\x89)tR"]
                .concat(),
        );
    }
    pickle.extend(b"u.");
    pickle
}

/// Small pickles that expand to huge or cyclic objects.
pub fn bombs() -> Vec<Vec<u8>> {
    // In order: tuples that double the one before, nested tuples, dictionaries in dictionaries, lists that contain
    // themselves.
    let doubled = [&b"\x80\x02)q\x00"[..], &b"h\x00h\x00\x86q\x00".repeat(5000), b"."].concat();
    let nested = [&b"\x80\x02"[..], &b"(".repeat(300_000), &b"t".repeat(300_000), b"."].concat();
    let names =
        [&b"\x80\x02"[..], &b"}X\x01\x00\x00\x00k".repeat(100_000), &b"s".repeat(100_000), b"."].concat();
    let itself = [&b"\x80\x02}q\x00"[..], &b"X\x01\x00\x00\x00kh\x00s".repeat(1000), b"."].concat();
    let long = [&b"\x80\x02X"[..], &u32::MAX.to_le_bytes(), b"abc"].concat();
    let reduced = [
        &b"\x80\x02"[..],
        &b"ctorch._tensor\n_rebuild_from_type_v2\n".repeat(20_000),
        &b")\x87R".repeat(20_000),
        b".",
    ]
    .concat();
    vec![doubled, nested, names, itself, long, reduced]
}
