//! Tests for operators of a server: quotas, reloaded keys, other kinds of sockets, and service managers.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixDatagram, UnixStream},
        },
    },
    process::{Child, Command, Stdio},
};

use moi_tests::{
    process::with_default_signals,
    server::{Reply, TEST_TIMEOUT, TestServer, parsed, until},
};
use serde_json::{Value, json};

use crate::{CHAT, question, server};

fn post_as(server: &TestServer, key: &str, body: &Value) -> Reply {
    let (bearer, body) = (format!("Bearer {key}"), body.to_string());
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    server.request("POST", CHAT, &headers, body.as_bytes())
}

#[test]
fn quotas_and_keys_that_are_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys");
    fs::write(&file, "ann k1 100/day\nbob k2\n").unwrap();
    let server = TestServer::start(&["--api-key-file", file.to_str().unwrap()]);
    // Prompt and answer count, also of streams; usage beyond a quota delays later requests.
    let mut body = question("Count to a hundred.", 80);
    body["stream"] = true.into();
    assert_eq!(post_as(&server, "k1", &body).status, 200);
    until("what was used is not counted", || post_as(&server, "k1", &body).status == 429);
    let refused = post_as(&server, "k1", &body);
    assert_eq!(
        (&refused.error()["type"], &refused.error()["code"]),
        (&json!("rate_limit_error"), &json!("rate_limit_exceeded"))
    );
    let seconds: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=24 * 3600).contains(&seconds), "{seconds}");
    assert_eq!(post_as(&server, "k2", &body).status, 200);

    // In the new file a key is gone, one is new, and one has a larger quota, with the same usage as before.
    fs::write(&file, "ann k1 100000/day\ncarl k3\n").unwrap();
    server.signal("HUP");
    until("the keys are not read again", || post_as(&server, "k3", &body).status == 200);
    assert_eq!((post_as(&server, "k2", &body).status, post_as(&server, "k1", &body).status), (401, 200));
    // The usage is kept, so the older quota is still exhausted.
    fs::write(&file, "ann k1 100/day\ncarl k3\n").unwrap();
    server.signal("HUP");
    until("what was used is forgotten", || post_as(&server, "k1", &body).status == 429);
    assert_eq!(post_as(&server, "k1", &body).header("x-should-retry"), Some("false"));
    // A wrong file must not change anything.
    for wrong in ["ann k1 100/never\n", "# none\n"] {
        fs::write(&file, wrong).unwrap();
        let before = server.said.lock().unwrap().matches("stay as they were").count();
        server.signal("HUP");
        until("nothing is said of it", || {
            server.said.lock().unwrap().matches("stay as they were").count() > before
        });
        assert_eq!(post_as(&server, "k3", &body).status, 200);
    }
    assert_eq!(server.stop(), Some(0));
}

/// A server that does not listen on an address of its own.
struct Other {
    child: Child,
}

impl Drop for Other {
    fn drop(&mut self) {
        // The process may already have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn through(mut stream: impl Read + Write) -> Reply {
    // Proxies send any host name.
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nHost: replica\r\nConnection: close\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    parsed(&bytes)
}

#[test]
fn a_socket_of_the_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("moi.sock");
    let command = || {
        let mut command = with_default_signals();
        command.args(["serve", "--unix", path.to_str().unwrap()]).stderr(Stdio::piped());
        command
    };
    let answered = || UnixStream::connect(&path).is_ok_and(|stream| through(stream).status == 200);
    let mut first = Other { child: command().spawn().unwrap() };
    until("it does not answer", answered);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    // A second server must report that the path is in use, and the first must continue.
    let second = command().output().unwrap();
    assert!(!second.status.success() && String::from_utf8_lossy(&second.stderr).contains("moi.sock"));
    assert!(answered());
    // A killed server leaves its socket behind, which the next server replaces.
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(path.exists());
    let mut third = Other { child: command().spawn().unwrap() };
    until("it does not answer", answered);
    let id = third.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(third.child.wait().unwrap().code(), Some(0));
    assert!(!path.exists(), "the socket is left behind");
    // A file that is not a socket must not be changed.
    fs::write(&path, "mine").unwrap();
    assert!(!command().output().unwrap().status.success());
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

/// A socket that a service manager has opened, and the notifications that it gets.
#[test]
fn a_service_manager_starts_it() {
    let directory = tempfile::tempdir().unwrap();
    let notify = directory.path().join("notify");
    let told = UnixDatagram::bind(&notify).unwrap();
    told.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let binary = with_default_signals();
    // The shell passes the socket as the file descriptor that service managers use first, and sets the process id.
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 0</dev/null";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(binary.get_program()).args(binary.get_args()).arg("serve");
    shell.stdin(Stdio::from(OwnedFd::from(listener))).stderr(Stdio::null());
    shell.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "300000");
    let mut other = Other { child: shell.spawn().unwrap() };
    let next = || {
        let mut bytes = [0; 256];
        let count = told.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    assert_eq!((next(), next()), ("WATCHDOG=1".to_owned(), "WATCHDOG=1".to_owned()));
    let reply = {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        moi_tests::server::reply(stream)
    };
    assert_eq!(reply.status, 200);
    let id = other.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    until("it is not told that the service stops", || next() == "STOPPING=1");
    assert_eq!(other.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_prompt_that_a_conversation_becomes() {
    let server = server();
    let body = question("Hello <|im_end|> there", 1);
    let told = server.ask("/v1/chat/completions/render", &body);
    assert_eq!(told, server.ask("/apply-template", &body));
    let mut asked = body;
    asked["return_token_ids"] = true.into();
    assert_eq!(told["tokens"], server.ask(CHAT, &asked)["choices"][0]["prompt_token_ids"]);
    let text = told["prompt"].as_str().unwrap();
    assert!(text.contains("<|im_start|>user\nHello <|im_end|> there<|im_end|>"), "{text}");
}

/// A server that is asked to stop must report so before it refuses requests, for as long as load balancers need to
/// notice.
#[test]
fn requests_are_taken_until_others_know() {
    let server = TestServer::start(&["--drain-delay", "600"]);
    assert_eq!(server.get("/readyz").status, 200);
    server.signal("TERM");
    until("it says that it is ready", || server.get("/readyz").status == 503);
    assert_eq!(server.post(CHAT, &question("Hello", 2)).status, 200);
    // A second signal ends the server at once.
    assert_ne!(server.stop(), Some(0));
}

/// The metrics that routers read (Gateway API Inference Extension, llm-d, AIBrix, production-stack, smg), and those
/// of the rules and the dashboard in examples/deploy, must exist from the first scrape on.
#[test]
fn metrics_have_the_names_that_others_read() {
    let server = server();
    let text = server.get("/metrics").text();
    let has = |name: &str| text.lines().any(|line| line.split(['{', ' ']).next() == Some(name));
    for name in [
        "vllm:num_requests_waiting",
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "vllm:cache_config_info",
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_queries_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:e2e_request_latency_seconds_sum",
    ] {
        assert!(has(name), "there is no {name}");
    }
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/deploy");
    let mut found = 0;
    for file in ["prometheus-rules.yaml", "grafana.json"] {
        let text = fs::read_to_string(format!("{deploy}/{file}")).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        for name in words.filter(|word| word.starts_with("vllm:") || word.starts_with("moi_")) {
            // Metrics with the rule of a request exist after the first such request.
            assert!(has(name) || name == "moi_mixed_tokens_total", "{file}: there is no {name}");
            found += 1;
        }
    }
    assert!(found > 15);
    // The manifest's probes, port and times must be those of the server.
    let manifest = fs::read_to_string(format!("{deploy}/kubernetes.yaml")).unwrap();
    for path in ["/readyz", "/livez"] {
        assert!(manifest.contains(&format!("path: {path}")) && server.get(path).status == 200);
    }
    for file in ["kubernetes.yaml", "Containerfile", "moi.service"] {
        let help = String::from_utf8(moi_tests::process::run(&["serve", "--help"]).stdout).unwrap();
        let text = fs::read_to_string(format!("{deploy}/{file}")).unwrap();
        let own = text.lines().filter(|line| {
            line.contains("serve\"") || line.contains("moi serve") || line.contains("args: [")
        });
        let flags =
            own.flat_map(|line| line.split([' ', ',', '"', '[', ']'])).filter(|word| word.starts_with("--"));
        for flag in flags.filter(|flag| *flag != "--rm") {
            assert!(help.contains(flag), "{file}: there is no {flag}");
        }
    }
}
