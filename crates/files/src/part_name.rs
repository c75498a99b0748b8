//! File names of split models: `PREFIX-00001-of-00003.gguf`, or the same with `.safetensors`. llama.cpp and
//! transformers write five digits for each number.

use std::path::Path;

/// The parsed file name of a part. Parts are recognised by their names alone, both for GGUF and for safetensors
/// without an index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartName {
    /// The text before the numbers, with folders if [`PartName::in_text`] parsed it.
    pub prefix: String,
    /// The part's number, from 1 on.
    pub number: usize,
    /// The number of parts.
    pub count: usize,
    /// The file name extension, without the dot.
    extension: String,
}

impl PartName {
    /// The most parts that are accepted. The largest models are published in fewer than two hundred parts, but a name
    /// can claim 99,999, so code that lists or opens parts refuses larger counts.
    pub const MAX_COUNT: usize = 1000;

    /// Parses a file's name; `None` if it is no part's name with this extension.
    pub fn of(path: &Path, extension: &str) -> Option<Self> {
        Self::in_text(path.file_name()?.to_str()?, extension)
    }

    /// Parses a path in a hub's listing, which has slashes on every system; `None` if it is no part's name with this
    /// extension. The folders belong to the prefix, so that the names of the other parts include them.
    pub fn in_text(path: &str, extension: &str) -> Option<Self> {
        // Some files have the extension in capitals; the other parts then have it, too.
        let (stem, own) = path.rsplit_once('.').filter(|(_, own)| own.eq_ignore_ascii_case(extension))?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let (number, count) = (five_digits(number)?, five_digits(count)?);
        let extension = own.to_owned();
        (1..=count).contains(&number).then(|| Self { prefix: prefix.to_owned(), number, count, extension })
    }

    /// The name of another part of the same model.
    pub fn part(&self, number: usize) -> String {
        format!("{}-{number:05}-of-{:05}.{}", self.prefix, self.count, self.extension)
    }

    /// The names of all parts, in order.
    pub fn parts(&self) -> impl Iterator<Item = String> {
        (1..=self.count).map(move |number| self.part(number))
    }

    /// Whether both are parts of one model.
    pub fn is_beside(&self, other: &Self) -> bool {
        (&self.prefix, self.count, &self.extension) == (&other.prefix, other.count, &other.extension)
    }
}

fn five_digits(digits: &str) -> Option<usize> {
    let is_number = digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
    if is_number { digits.parse().ok() } else { None }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let part = PartName::of(Path::new("a/b-00002-of-00003.gguf"), "gguf").unwrap();
        assert_eq!((part.prefix.as_str(), part.number, part.count), ("b", 2, 3));
        assert_eq!(part.part(1), "b-00001-of-00003.gguf");
        assert_eq!(part.parts().last().unwrap(), "b-00003-of-00003.gguf");
        let listed = PartName::in_text("a/b-00002-of-00003.gguf", "gguf").unwrap();
        assert_eq!((listed.prefix.as_str(), listed.part(1).as_str()), ("a/b", "a/b-00001-of-00003.gguf"));
        let capitals = PartName::of(Path::new("B-00002-of-00003.GGUF"), "gguf").unwrap();
        assert_eq!(capitals.part(1), "B-00001-of-00003.GGUF");
        for name in [
            "a-1-of-2.gguf",
            "a-00003-of-00002.gguf",
            "a-00000-of-00002.gguf",
            "a-00001-of-00002.bin",
            "a-+0001-of-00002.gguf",
            "00001-of-00002.gguf",
            "a-00001-of-00002gguf",
        ] {
            assert_eq!(PartName::of(Path::new(name), "gguf"), None, "{name}");
        }
    }
}
