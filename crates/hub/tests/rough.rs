//! Processes that are killed, that meet, and disks that are full or cannot be written. Each fetch is a process of its own:
//! this test's executable, called again.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod hub;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use hub::{COMMIT, Manners, Server, content, entry, fetcher, hub, not_run, repository, serve, sha256};

const LENGTH: usize = 4 << 20;

/// What a child does: fetches the file, and says how it went.
#[test]
#[ignore = "the other tests call it as a process of its own"]
fn child() {
    // Not called by a test, but with all that is ignored.
    let Ok(directory) = env::var("MOI_TEST_DIRECTORY") else { return };
    let endpoint = env::var("MOI_TEST_ENDPOINT").unwrap();
    let (fetcher, body) = (fetcher(Path::new(&directory), &endpoint), content(LENGTH));
    let say = |line: &str| println!("said {line}");
    let path = match env::var_os("MOI_TEST_REPOSITORY") {
        None => fetcher.fetch(entry(&body, &[]), say),
        Some(_) => {
            fetcher.fetch_repository("owner/tiny", None, say).map(|path| path.join("model.safetensors"))
        }
    };
    match path {
        Ok(path) => println!("fetched {}", sha256(&fs::read(path).unwrap())),
        Err(error) => println!("refused {error}"),
    }
}

/// What is fetched: a model of the catalogue into the cache, or a repository into the hub's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Catalogue,
    Repository,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Catalogue, Self::Repository];

    fn serve(self, manners: Manners) -> Server {
        let body = content(LENGTH);
        match self {
            Self::Catalogue => hub(&body, manners),
            Self::Repository => {
                serve(repository(&[("config.json", b"{}"), ("model.safetensors", &body)]), manners)
            }
        }
    }

    /// Where the file lies when it is whole, and where while it is fetched.
    fn places(self, directory: &Path) -> (PathBuf, PathBuf) {
        let digest = sha256(&content(LENGTH));
        match self {
            Self::Catalogue => {
                let cache = directory.join("cache");
                (cache.join("models/tiny/tiny.gguf"), cache.join(format!("partial/{digest}.part")))
            }
            Self::Repository => {
                let repository = directory.join("hub/models--owner--tiny");
                let whole = repository.join("snapshots").join(COMMIT).join("model.safetensors");
                (whole, repository.join(format!("blobs/{digest}.incomplete")))
            }
        }
    }
}

fn command(kind: Kind, directory: &Path, server: &Server) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]);
    command.env("MOI_TEST_ENDPOINT", &server.endpoint).env("MOI_TEST_DIRECTORY", directory);
    if kind == Kind::Repository {
        command.env("MOI_TEST_REPOSITORY", "1");
    }
    command
}

fn start(kind: Kind, directory: &Path, server: &Server) -> Child {
    command(kind, directory, server).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// What a child printed: whether it fetched the right file, and its words.
fn said(child: Child) -> (bool, String) {
    let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    (out.contains(&format!("fetched {}", sha256(&content(LENGTH)))), out)
}

/// A number in 0..end, from a counter.
fn random(seed: u64, end: u64) -> u64 {
    // The finaliser of splitmix64.
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) % end
}

/// However often it is killed: no file has the name of a whole one before it is whole, and the next try goes on.
#[test]
fn kills_at_any_moment() {
    // About a quarter of a second for all of it.
    let manners = Manners { slow: Some(Duration::from_millis(4)), ..Manners::default() };
    for kind in Kind::ALL {
        let directory = tempfile::tempdir().unwrap();
        let (body, mut resumed, mut late) = (content(LENGTH), 0, 0);
        let server = kind.serve(manners);
        let (whole, part) = kind.places(directory.path());
        let length = || fs::metadata(&part).map_or(0, |part| part.len());
        for kill in 0..20 {
            let before = length();
            let mut child = start(kind, directory.path(), &server);
            thread::sleep(Duration::from_millis(random(kill, 400)));
            child.kill().unwrap();
            child.wait().unwrap();
            if whole.exists() {
                // It had finished: the name stands for the whole file.
                assert_eq!(fs::read(&whole).unwrap(), body, "kill {kill}");
                // What a link leads to goes with it.
                fs::remove_file(fs::canonicalize(&whole).unwrap()).unwrap();
                let _ = fs::remove_file(&whole);
                late += 1;
            } else if !part.with_extension("").exists() {
                // Between these two it has the name of its content, and is whole, too.
                assert!(length() >= before, "kill {kill} lost {} bytes", before - length());
                resumed += usize::from(length() > before && before > 0);
            }
        }
        let (fetched, out) = said(start(kind, directory.path(), &server));
        assert!(fetched, "{out}");
        let ranges = server.ranges();
        println!(
            "{kind:?}: of 20 kills {late} came too late, {resumed} broke off what was resumed; {ranges:?}"
        );
        assert!(ranges.iter().any(|range| !range.is_empty()), "nothing was resumed: {ranges:?}");
    }
}

#[test]
fn two_processes_fetch_one_file_once() {
    // About a second for all of it: both have started long before it is over.
    let manners = Manners { slow: Some(Duration::from_millis(16)), ..Manners::default() };
    for kind in Kind::ALL {
        let directory = tempfile::tempdir().unwrap();
        let server = kind.serve(manners);
        let children = [start(kind, directory.path(), &server), start(kind, directory.path(), &server)];
        let outs = children.map(said);
        assert!(outs.iter().all(|(fetched, _)| *fetched), "{outs:?}");
        let asked = server.asked.lock().unwrap().iter().filter(|line| is_content(line)).count();
        let waited =
            outs.iter().filter(|(_, out)| out.contains("another process is fetching the same")).count();
        // Of a repository's two files one may wait for the first, the other for the second.
        assert!(asked == 1 && waited >= 1, "{asked} {outs:?}");
        // One that dies leaves nothing that others wait for.
        let (whole, _) = kind.places(directory.path());
        fs::remove_file(fs::canonicalize(&whole).unwrap()).unwrap();
        let _ = fs::remove_file(&whole);
        let mut killed = start(kind, directory.path(), &server);
        thread::sleep(Duration::from_millis(300));
        let waiting = start(kind, directory.path(), &server);
        thread::sleep(Duration::from_millis(50));
        killed.kill().unwrap();
        killed.wait().unwrap();
        let (fetched, out) = said(waiting);
        assert!(fetched, "{out}");
    }
}

/// Whether the large file was asked for, from its beginning or from some byte on.
fn is_content(line: &str) -> bool {
    line.starts_with("GET") && (line.contains("tiny.gguf") || line.contains("model.safetensors"))
}

/// Runs a script as root of a name space of its own, where it may mount; whether the system allows that.
fn in_own_mounts(kind: Kind, script: &str, directory: &Path, server: &Server) -> Option<String> {
    let possible = Command::new("unshare").args(["-rm", "true"]).stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        not_run("this system allows no mounts in a name space of one's own");
        return None;
    }
    let child = command(kind, directory, server);
    let mut all = Command::new("unshare");
    all.args(["-rm", "sh", "-ec", script, "sh"]).arg(child.get_program()).args(child.get_args());
    for (name, value) in child.get_envs() {
        all.env(name, value.unwrap());
    }
    let out = all.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8(out.stdout).unwrap())
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk() {
    // What is there afterwards is listed behind the words of the child.
    let script = "mount -t tmpfs -o size=1m tmpfs \"$MOI_TEST_DIRECTORY\"; \"$@\"; \
                  cd \"$MOI_TEST_DIRECTORY\" && find . ! -type d";
    for kind in Kind::ALL {
        let directory = tempfile::tempdir().unwrap();
        let server = kind.serve(Manners::default());
        let Some(out) = in_own_mounts(kind, script, directory.path(), &server) else { return };
        assert!(out.contains("refused cannot write") && out.contains("No space left on device"), "{out}");
        let (whole, part) = kind.places(Path::new("."));
        let listed = |path: &Path| out.lines().any(|line| Path::new(line) == path);
        assert!(listed(&part) && !listed(&whole), "{out}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_cache_that_cannot_be_written() {
    let script = "mount --bind \"$MOI_TEST_DIRECTORY\" \"$MOI_TEST_DIRECTORY\"; \
                  mount -o remount,bind,ro \"$MOI_TEST_DIRECTORY\"; \"$@\"";
    for kind in Kind::ALL {
        let directory = tempfile::tempdir().unwrap();
        let server = kind.serve(Manners::default());
        let Some(out) = in_own_mounts(kind, script, directory.path(), &server) else { return };
        assert!(out.contains("refused cannot write") && out.contains("Read-only file system"), "{out}");
        let asked = server.asked.lock().unwrap().iter().any(|line| is_content(line));
        assert!(!asked, "it was fetched, and could not be kept");
        // A model that is in it can be used.
        let (fetched, out) = said(start(kind, directory.path(), &server));
        assert!(fetched, "{out}");
        let before = server.ranges().len();
        let out = in_own_mounts(kind, script, directory.path(), &server).unwrap();
        assert!(out.contains("fetched ") && server.ranges().len() == before, "{out}");
    }
}
