//! Keeps samples in an append-only file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::EvalError;

/// A sample: one answer to one problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The problem's id.
    pub problem: String,
    /// A digest of the prompt and the scorer: a changed problem counts as another problem.
    pub digest: String,
    /// The rule as text, which parses back to the same rule.
    pub rule: String,
    /// The number of the sample for this problem and rule, from 0.
    pub sample: usize,
    /// The random seed, which is the same for the same sample of every rule.
    pub seed: u64,
    /// Whether the answer solves the problem.
    pub correct: bool,
    /// The part of the text that was taken as the answer.
    pub found: Option<String>,
    /// The number of generated tokens.
    pub tokens: usize,
    /// Why the generation ended.
    pub stop: String,
    /// The whole answer.
    pub text: String,
}

/// The first line of the file: what all samples have in common.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    run: Value,
}

/// A file of samples: a first line that describes the run, then one JSON object per line.
///
/// A line is written as a whole and is on disk before the next line is begun. If a process was killed, its incomplete
/// last line is removed when the file is opened again.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens or creates a file for samples of this `run`, which is an object whose fields must equal those of an
    /// existing file. Returns the samples in the file.
    ///
    /// # Errors
    /// If the file cannot be read or written, is in use, or has samples of another run.
    pub fn open(path: &Path, run: &Value) -> Result<(Self, Vec<Sample>), EvalError> {
        let failed = |error| EvalError::Io { path: path.to_owned(), error };
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(failed)?;
        if file.try_lock().is_err() {
            let what = "another process is writing to it";
            return Err(failed(io::Error::new(io::ErrorKind::ResourceBusy, what)));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64).map_err(failed)?;
        file.seek(SeekFrom::Start(whole as u64)).map_err(failed)?;
        let mut log = Self { path: path.to_owned(), file };
        let mut lines = bytes[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        match lines.next() {
            None => log.write(&Head { run: run.clone() })?,
            Some(line) => log.check(line, run)?,
        }
        let mut samples = Vec::new();
        for (at, line) in lines.enumerate() {
            samples.push(log.parsed::<Sample>(line, at + 2)?);
        }
        Ok((log, samples))
    }

    /// Reads a file's run and samples without changing the file.
    ///
    /// # Errors
    /// If the file cannot be read, or is no file of samples.
    pub fn read(path: &Path) -> Result<(Value, Vec<Sample>), EvalError> {
        let bytes = std::fs::read(path).map_err(|error| EvalError::Io { path: path.to_owned(), error })?;
        let mut lines = bytes.split(|&byte| byte == b'\n').zip(1..).filter(|(line, _)| !line.is_empty());
        let (first, number) = lines.next().unwrap_or_default();
        let head: Head = parsed(path, first, number)?;
        let samples = lines.map(|(line, number)| parsed(path, line, number)).collect::<Result<_, _>>()?;
        Ok((head.run, samples))
    }

    fn parsed<T: for<'de> Deserialize<'de>>(&self, line: &[u8], number: usize) -> Result<T, EvalError> {
        parsed(&self.path, line, number)
    }

    /// Checks that the file was created for the same run.
    fn check(&self, line: &[u8], run: &Value) -> Result<(), EvalError> {
        let head: Head = self.parsed(line, 1)?;
        let fields = |value: &Value| value.as_object().cloned().unwrap_or_default();
        let (theirs, ours) = (fields(&head.run), fields(run));
        let differs = ours.keys().chain(theirs.keys()).find(|key| ours.get(*key) != theirs.get(*key));
        match differs {
            None => Ok(()),
            Some(key) => {
                let told = |fields: &serde_json::Map<String, Value>| {
                    fields.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string)
                };
                let what = format!("{key} is {} there and {} now", told(&theirs), told(&ours));
                Err(EvalError::OtherRun { path: self.path.clone(), what })
            }
        }
    }

    /// Appends a sample.
    ///
    /// # Errors
    /// If the sample cannot be written; the earlier samples stay.
    pub fn push(&mut self, sample: &Sample) -> Result<(), EvalError> {
        self.write(sample)
    }

    fn write(&mut self, value: &impl Serialize) -> Result<(), EvalError> {
        let failed = |error: io::Error| EvalError::Io { path: self.path.clone(), error };
        let mut line = serde_json::to_vec(value).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).and_then(|()| self.file.sync_data()).map_err(failed)
    }
}

fn parsed<T: for<'de> Deserialize<'de>>(path: &Path, line: &[u8], number: usize) -> Result<T, EvalError> {
    serde_json::from_slice(line).map_err(|error| EvalError::Line {
        path: path.to_owned(),
        line: number,
        what: format!("no line of results: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn sample(at: usize) -> Sample {
        Sample {
            problem: format!("p{at}"),
            digest: "d".into(),
            rule: "moi:beta=0.5".into(),
            sample: at,
            seed: 7,
            correct: at.is_multiple_of(2),
            found: (at > 0).then(|| "42".into()),
            tokens: 3,
            stop: "eos".into(),
            text: "a\nb \u{2028} \"c\"".into(),
        }
    }

    #[test]
    fn a_file_that_was_cut_anywhere_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.jsonl");
        let run = json!({"model": "m", "temperature": 0.5});
        let (mut log, before) = Log::open(&path, &run).unwrap();
        assert!(before.is_empty());
        (0..3).for_each(|at| log.push(&sample(at)).unwrap());
        drop(log);
        let whole = fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut log, kept) = Log::open(&path, &run).unwrap();
            let lines = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(kept, (0..lines.saturating_sub(1)).map(sample).collect::<Vec<_>>(), "cut at {cut}");
            (kept.len()..3).for_each(|at| log.push(&sample(at)).unwrap());
            drop(log);
            assert_eq!(fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn other_runs_and_other_writers_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.jsonl");
        let (log, _) = Log::open(&path, &json!({"model": "m"})).unwrap();
        assert!(
            Log::open(&path, &json!({"model": "m"})).unwrap_err().to_string().contains("another process")
        );
        drop(log);
        let said = Log::open(&path, &json!({"model": "n"})).unwrap_err().to_string();
        assert!(said.contains("model is \"m\" there and \"n\" now"), "{said}");
        assert!(
            Log::open(&path, &json!({"model": "m", "x": 1}))
                .unwrap_err()
                .to_string()
                .contains("x is nothing there")
        );
        fs::write(&path, "{\"run\": {\"model\": \"m\"}}\n{\"problem\": 3}\n").unwrap();
        let said = Log::open(&path, &json!({"model": "m"})).unwrap_err().to_string();
        assert!(said.contains("line 2: no line of results"), "{said}");
        assert!(Log::open(directory.path(), &json!({})).is_err());
    }
}
