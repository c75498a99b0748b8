//! Tests killed processes, simultaneous processes, and disks that are full or read-only. Each download is a separate
//! process: this test's executable, called again.

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

/// The child process: downloads the file and prints the result.
#[test]
#[ignore = "the other tests call it as a process of its own"]
fn child() {
    // The variable is missing if the test is run with all ignored tests.
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

/// The kind of download: a catalogue model into the cache, or a repository into the hub's cache.
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

    /// The paths of the complete file and of the partial download.
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

/// Whether a child process downloaded the right file, and its output.
fn said(child: Child) -> (bool, String) {
    let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    (out.contains(&format!("fetched {}", sha256(&content(LENGTH)))), out)
}

/// A pseudo-random number in 0..end, from a counter.
fn random(seed: u64, end: u64) -> u64 {
    // This is the finaliser of splitmix64.
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) % end
}

/// However often the process is killed, only a complete file has the final name, and the next attempt resumes.
#[test]
fn kills_at_any_moment() {
    // The whole download takes about a quarter of a second.
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
                // The child had finished, so the file must be complete.
                assert_eq!(fs::read(&whole).unwrap(), body, "kill {kill}");
                // The target of the link is removed as well.
                fs::remove_file(fs::canonicalize(&whole).unwrap()).unwrap();
                let _ = fs::remove_file(&whole);
                late += 1;
            } else if !part.with_extension("").exists() {
                // Between these two states, the complete file has the name of its blob.
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
    // The whole download takes about a second, so both processes have started long before it ends.
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
        // Of a repository's two files, each process may wait for one.
        assert!(asked == 1 && waited >= 1, "{asked} {outs:?}");
        // A process that dies does not block others.
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

/// Whether a request is for the content of the large file.
fn is_content(line: &str) -> bool {
    line.starts_with("GET") && (line.contains("tiny.gguf") || line.contains("model.safetensors"))
}

/// Runs a script as root of a mount namespace of its own, in which it may mount; `None` if the system does not allow
/// this.
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
    // The remaining files are listed behind the output of the child.
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
        // A model in a read-only cache can be used.
        let (fetched, out) = said(start(kind, directory.path(), &server));
        assert!(fetched, "{out}");
        let before = server.ranges().len();
        let out = in_own_mounts(kind, script, directory.path(), &server).unwrap();
        assert!(out.contains("fetched ") && server.ranges().len() == before, "{out}");
    }
}
