//! Processes that are killed, that meet, and disks that are full or cannot be written. Each fetch is a process of its own:
//! this test's executable, called again.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod hub;

use std::{
    env, fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use hub::{Manners, Server, content, entry, fetcher, hub, not_run, sha256};

const LENGTH: usize = 4 << 20;

/// What a child does: fetches the file, and says how it went.
#[test]
#[ignore = "the other tests call it as a process of its own"]
fn child() {
    // Not called by a test, but with all that is ignored.
    let Ok(directory) = env::var("MOI_TEST_DIRECTORY") else { return };
    let endpoint = env::var("MOI_TEST_ENDPOINT").unwrap();
    let body = content(LENGTH);
    match fetcher(Path::new(&directory), &endpoint).fetch(entry(&body, &[]), |line| println!("said {line}")) {
        Ok(path) => println!("fetched {}", sha256(&fs::read(path).unwrap())),
        Err(error) => println!("refused {error}"),
    }
}

fn command(directory: &Path, server: &Server) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]);
    command.env("MOI_TEST_ENDPOINT", &server.endpoint).env("MOI_TEST_DIRECTORY", directory);
    command
}

fn start(directory: &Path, server: &Server) -> Child {
    command(directory, server).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
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
    let directory = tempfile::tempdir().unwrap();
    // About a quarter of a second for all of it.
    let manners = Manners { slow: Some(Duration::from_millis(4)), ..Manners::default() };
    let (body, mut resumed, mut whole) = (content(LENGTH), 0, 0);
    let server = hub(&body, manners);
    let (model, partial) = (directory.path().join("cache/models"), directory.path().join("cache/partial"));
    let length = || {
        let part = fs::read_dir(&partial)
            .into_iter()
            .flatten()
            .flatten()
            .find(|e| e.path().extension().unwrap() == "part");
        part.map_or(0, |part| part.metadata().unwrap().len())
    };
    for kill in 0..20 {
        let before = length();
        let mut child = start(directory.path(), &server);
        thread::sleep(Duration::from_millis(random(kill, 400)));
        child.kill().unwrap();
        child.wait().unwrap();
        let file = model.join("tiny/tiny.gguf");
        if file.exists() {
            // It had finished: the name stands for the whole file.
            assert_eq!(fs::read(&file).unwrap(), body, "kill {kill}");
            fs::remove_file(file).unwrap();
            whole += 1;
        } else {
            assert!(length() >= before, "kill {kill} lost {} bytes", before - length());
            resumed += usize::from(length() > before && before > 0);
        }
    }
    println!(
        "of 20 kills {whole} came too late, {resumed} broke off what was resumed; {:?}",
        server.ranges()
    );
    let (fetched, out) = said(start(directory.path(), &server));
    assert!(fetched, "{out}");
    let asked = server.ranges();
    assert!(asked.iter().any(|range| !range.is_empty()), "nothing was resumed: {asked:?}");
}

#[test]
fn two_processes_fetch_one_file_once() {
    let directory = tempfile::tempdir().unwrap();
    let manners = Manners { slow: Some(Duration::from_millis(4)), ..Manners::default() };
    let server = hub(&content(LENGTH), manners);
    let children = [start(directory.path(), &server), start(directory.path(), &server)];
    let outs = children.map(said);
    assert!(outs.iter().all(|(fetched, _)| *fetched), "{outs:?}");
    let waited = outs.iter().filter(|(_, out)| out.contains("another process is fetching the same")).count();
    assert_eq!((waited, server.ranges()), (1, vec![String::new()]), "{outs:?}");
    // One that dies leaves nothing that others wait for.
    fs::remove_dir_all(directory.path().join("cache/models")).unwrap();
    let mut killed = start(directory.path(), &server);
    thread::sleep(Duration::from_millis(150));
    let waiting = start(directory.path(), &server);
    thread::sleep(Duration::from_millis(50));
    killed.kill().unwrap();
    killed.wait().unwrap();
    let (fetched, out) = said(waiting);
    assert!(fetched, "{out}");
}

/// Runs a script as root of a name space of its own, where it may mount; whether the system allows that.
fn in_own_mounts(script: &str, directory: &Path, server: &Server) -> Option<String> {
    let possible = Command::new("unshare").args(["-rm", "true"]).stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        not_run("this system allows no mounts in a name space of one's own");
        return None;
    }
    let child = command(directory, server);
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
    let directory = tempfile::tempdir().unwrap();
    let server = hub(&content(LENGTH), Manners::default());
    // What is there afterwards is listed behind the words of the child.
    let script = "mount -t tmpfs -o size=1m tmpfs \"$MOI_TEST_DIRECTORY\"; \"$@\"; \
                  cd \"$MOI_TEST_DIRECTORY\" && find . -type f";
    let Some(out) = in_own_mounts(script, directory.path(), &server) else { return };
    assert!(out.contains("refused cannot write") && out.contains("No space left on device"), "{out}");
    assert!(out.contains("/cache/partial/") && !out.contains("tiny.gguf"), "{out}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_cache_that_cannot_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let server = hub(&content(LENGTH), Manners::default());
    let script = "mount --bind \"$MOI_TEST_DIRECTORY\" \"$MOI_TEST_DIRECTORY\"; \
                  mount -o remount,bind,ro \"$MOI_TEST_DIRECTORY\"; \"$@\"";
    let Some(out) = in_own_mounts(script, directory.path(), &server) else { return };
    assert!(out.contains("refused cannot write") && out.contains("Read-only file system"), "{out}");
    assert!(server.ranges().is_empty(), "it was fetched, and could not be kept");
    // A model that is in it can be used.
    let (fetched, out) = said(start(directory.path(), &server));
    assert!(fetched, "{out}");
    let out = in_own_mounts(script, directory.path(), &server).unwrap();
    assert!(out.contains("fetched ") && !out.contains("said "), "{out}");
}
