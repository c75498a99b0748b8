//! Tests of Ctrl-C and SIGTERM at any moment: the terminal must be restored, and the text so far must be kept.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    fs::File,
    io::{Read, Write},
    num::NonZero,
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use moi_tests::{
    process::{binary, with_default_signals},
    real::model_file,
};
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};

/// A terminal with a process.
struct Session {
    user: OwnedFd,
    terminal: File,
    child: Child,
    shown: mpsc::Receiver<Vec<u8>>,
}

impl Session {
    fn start(args: &[&str]) -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let terminal = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let mut command = with_default_signals();
        command.args(args).env("TERM", "xterm");
        command.stdin(terminal.try_clone().unwrap()).stdout(terminal.try_clone().unwrap());
        let child = command.stderr(terminal.try_clone().unwrap()).spawn().unwrap();
        let (send, shown) = mpsc::channel();
        let mut reader = File::from(user.try_clone().unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { user, terminal, child, shown }
    }

    /// Waits until the screen shows a text.
    fn wait_for(&self, text: &str, seen: &mut String) {
        while !seen.contains(text) {
            let piece = self.shown.recv_timeout(Duration::from_secs(120));
            *seen += &String::from_utf8_lossy(&piece.unwrap_or_else(|_| panic!("no {text:?} in {seen:?}")));
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The exit status of the process, after a check that the terminal echoes lines as before.
    fn end(mut self, seen: &mut String) -> ExitStatus {
        let status = self.child.wait().unwrap();
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG), "{modes:?}");
        drop(self.terminal);
        while let Ok(piece) = self.shown.recv_timeout(Duration::from_millis(200)) {
            *seen += &String::from_utf8_lossy(&piece);
        }
        assert!(!screen(seen).screen().hide_cursor(), "the cursor is hidden: {seen:?}");
        status
    }
}

/// A virtual terminal that has received this output, and that is large enough for all of it.
fn screen(seen: &str) -> vt100::Parser {
    let [rows, columns] = [400, 1000].map(|size| NonZero::new(size).unwrap());
    let mut screen = vt100::Parser::new(rows, columns, 0);
    screen.process(seen.as_bytes());
    screen
}

/// The final text on the screen.
fn text(seen: &str) -> String {
    screen(seen).screen().contents().trim_end().to_owned()
}

const ARGS: &[&str] = &["--model", "smollm2-135m-instruct", "--device", "cpu", "--temperature", "0"];

#[test]
fn a_generation_ends_at_any_moment() {
    model_file("smollm2-135m-instruct");
    let all = [
        &["generate"],
        ARGS,
        &["--max-tokens", "300", "--min-tokens", "300", "Count from one to one hundred in words."],
    ]
    .concat();
    let whole = Command::new(binary()).args(&all).output().unwrap();
    let whole = String::from_utf8(whole.stdout).unwrap();
    let (mut early, mut late) = (0, 0);
    for (at, signal) in [Signal::INT, Signal::TERM].into_iter().cycle().take(12).enumerate() {
        let (session, mut seen) = (Session::start(&all), String::new());
        // The signals come during the start, loading, the prompt and decoding.
        thread::sleep(Duration::from_millis(120 * at as u64));
        session.shown.try_iter().for_each(|piece| seen += &String::from_utf8_lossy(&piece));
        let before = text(&seen);
        session.signal(signal);
        let status = session.end(&mut seen);
        let text = text(&seen);
        assert!(whole.starts_with(&text), "{text:?} is no beginning of {whole:?}");
        match status.code() {
            // Before the handler is installed, there is no text to keep.
            None => {
                early += 1;
                assert!(seen.is_empty(), "signal {at}: it showed {seen:?} and did not tidy up");
            }
            Some(0) => assert_eq!(text, whole.trim_end(), "signal {at}"),
            Some(130) => {
                // The progress bar must be gone, and the text must still be there.
                let is_answer = !before.is_empty() && whole.starts_with(&before);
                assert!(!is_answer || text.starts_with(&before), "signal {at}: {before:?} became {text:?}");
                late += usize::from(is_answer);
            }
            other => panic!("signal {at}: {other:?}, {seen:?}"),
        }
    }
    println!("{early} before it began, {late} while it ran");
    // However slow the machine is, this signal comes after the first words.
    let (session, mut seen) = (Session::start(&all), String::new());
    let words: String = whole.chars().take(20).collect();
    session.wait_for(&words, &mut seen);
    session.signal(Signal::TERM);
    assert_eq!(session.end(&mut seen).code(), Some(130), "{seen:?}");
    let text = text(&seen);
    assert!(whole.starts_with(&text) && text.starts_with(words.trim_end()), "{text:?}");
}

/// A signal that the process was started to ignore must not end it, and other signals must work as usual.
#[cfg(target_os = "linux")]
#[test]
fn nohup_means_what_it_says() {
    model_file("smollm2-135m-instruct");
    for (signals, code) in [(&[Signal::HUP][..], 0), (&[Signal::HUP, Signal::TERM], 130)] {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(binary()).args(["generate"]).args(ARGS);
        let args = ["--max-tokens", "60", "--min-tokens", "60", "Count from one to one hundred in words."];
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        // The generation has begun.
        let mut first = [0; 1];
        out.read_exact(&mut first).unwrap();
        for &signal in signals {
            kill_process(Pid::from_child(&child), signal).unwrap();
        }
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{text:?}");
        assert!(code != 0 || text.len() > 100, "{text:?}");
    }
}

#[test]
fn a_chat_leaves_the_terminal_as_it_was() {
    model_file("smollm2-135m-instruct");
    let args = [&["chat"], ARGS, &["--max-tokens", "200"]].concat();
    // A signal at the prompt, where a line editor reads single keys.
    for signal in [Signal::TERM, Signal::HUP] {
        let (session, mut seen) = (Session::start(&args), String::new());
        session.wait_for("> ", &mut seen);
        thread::sleep(Duration::from_millis(300));
        session.signal(signal);
        assert_eq!(session.end(&mut seen).code(), Some(130), "{seen:?}");
    }
    // A signal during an answer: the first ends the answer, and the conversation continues.
    let (session, mut seen) = (Session::start(&args), String::new());
    session.wait_for("> ", &mut seen);
    File::from(session.user.try_clone().unwrap())
        .write_all(b"Count from one to one hundred in words.\r")
        .unwrap();
    session.wait_for("words.", &mut seen);
    thread::sleep(Duration::from_millis(1500));
    session.signal(Signal::INT);
    seen.clear();
    session.wait_for("> ", &mut seen);
    thread::sleep(Duration::from_millis(300));
    File::from(session.user.try_clone().unwrap()).write_all(b"\x04").unwrap();
    assert!(session.end(&mut seen).success(), "{seen:?}");
}
