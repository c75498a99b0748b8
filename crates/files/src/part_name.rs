//! Names of the files of a model that is split: `PREFIX-00001-of-00003.gguf`, or the same with `.safetensors`. Five digits
//! each is what llama.cpp and transformers write.

use std::path::Path;

/// What the name of a part says. Parts are told by their names alone, in GGUF as in safetensors without an index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartName {
    /// What stands before the numbers, with its folders where [`PartName::in_text`] read them.
    pub prefix: String,
    /// From 1 on.
    pub number: usize,
    /// How many parts there are.
    pub count: usize,
    /// Behind the dot.
    extension: String,
}

impl PartName {
    /// The largest models are published in fewer than two hundred parts. A name alone can claim 99,999 of them, so
    /// whoever lists or opens parts refuses a larger count than this.
    pub const MAX_COUNT: usize = 1000;

    /// Reads a file's name; none if it is not that of a part with this extension.
    pub fn of(path: &Path, extension: &str) -> Option<Self> {
        Self::in_text(path.file_name()?.to_str()?, extension)
    }

    /// Reads a path as a hub lists it, with slashes on every system; none if it is not that of a part with this
    /// extension. The folders are part of the prefix, so that the other parts are named with them.
    pub fn in_text(path: &str, extension: &str) -> Option<Self> {
        // Some write it in capitals; the other parts are named alike.
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

    /// The names of all parts in their order.
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
