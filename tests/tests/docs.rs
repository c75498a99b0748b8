//! Checks that links, pages, commands and flags in the documentation exist.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use moi_tests::process::run;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn pages_in(directory: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => pages_in(&path, all),
            false if path.extension().is_some_and(|extension| extension == "md") => all.push(path),
            false => {}
        }
    }
}

/// The README, and all pages of the book.
fn pages() -> Vec<(PathBuf, String)> {
    let mut all = vec![root().join("README.md"), root().join("models/README.md")];
    pages_in(&root().join("docs"), &mut all);
    all.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The targets of the links of a page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(link, _)| link))
}

/// The anchors of the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .collect::<String>()
            .replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    for (path, text) in pages() {
        for link in links(&text).filter(|link| !link.starts_with("http")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let to = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(to.exists(), "{}: {link}", path.display());
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&to).unwrap());
                assert!(there.contains(anchor), "{}: {link}, of {there:?}", path.display());
            }
        }
    }
}

#[test]
fn the_book_has_every_page_once() {
    let docs = root().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed: Vec<PathBuf> = links(&summary).map(|link| docs.join(link)).collect();
    let mut found = Vec::new();
    pages_in(&docs, &mut found);
    found.retain(|path| !path.ends_with("SUMMARY.md"));
    let sorted = |mut all: Vec<PathBuf>| {
        all.sort();
        all
    };
    assert_eq!(sorted(listed), sorted(found));
}

fn sources_in(directory: &Path, all: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources_in(&path, all),
            false if path.extension().is_some_and(|extension| extension == "rs") => {
                all.push_str(&fs::read_to_string(path).unwrap());
            }
            false => {}
        }
    }
}

/// The tests that serving-reports.md names must exist.
#[test]
fn tests_that_are_named_are_there() {
    let text = fs::read_to_string(root().join("docs/serving-reports.md")).unwrap();
    let mut sources = String::new();
    ["tests/tests", "crates"].iter().for_each(|directory| sources_in(&root().join(directory), &mut sources));
    let cells = text
        .lines()
        .filter(|line| line.starts_with('|'))
        .filter_map(|line| line.rsplit(" | ").next())
        .flat_map(|cell| cell.split([';', ',', ' ']));
    let names =
        cells.filter_map(|word| word.rsplit_once("::")).map(|(_, name)| name.trim_matches(['|', '.', ' ']));
    let mut checked = 0;
    for name in names {
        assert!(sources.contains(&format!("fn {name}(")), "there is no test {name}");
        checked += 1;
    }
    assert!(checked > 50, "{checked} tests were found");
}

#[test]
fn the_readme_is_short() {
    assert!(fs::metadata(root().join("README.md")).unwrap().len() <= 10 << 10);
}

/// The commands in the shell blocks of a page, each on one line.
fn commands(text: &str) -> Vec<String> {
    let mut blocks =
        text.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```")).map(|(block, _)| block);
    blocks
        .by_ref()
        .flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// Every `moi` command in the documentation must exist, and must have the flags that are shown.
#[test]
fn commands_are_those_that_there_are() {
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    let mut checked = 0;
    for (path, text) in pages() {
        for line in commands(&text) {
            let words = line.split(" #").next().unwrap().replace("cargo run --release --", "moi");
            let Some((_, of)) = words.split_once("moi ").filter(|(before, _)| before.is_empty()) else {
                continue;
            };
            let command = of.split_whitespace().next().unwrap().to_owned();
            let help = helps.entry(command.clone()).or_insert_with(|| {
                let out = run(&[&command, "--help"]);
                assert!(out.status.success(), "{}: there is no `moi {command}`: {line}", path.display());
                String::from_utf8(out.stdout).unwrap()
            });
            let flags = of.split_whitespace().filter(|word| word.starts_with("--"));
            for flag in flags.map(|flag| flag.split('=').next().unwrap()) {
                let is_there =
                    help.split([' ', '\n', ',']).any(|word| word.split(['=', '[']).next() == Some(flag));
                assert!(is_there, "{}: `moi {command}` has no {flag}: {line}", path.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked} commands were found");
}
