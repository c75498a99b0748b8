//! A local server that simulates the hubs and mirrors in mirrors.json, like the server in tests/reference/hub.py.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;
use sha1::{Digest, Sha1};

use super::{COMMIT, sha256};

/// The name of the file in the repository owner/tiny.
pub(crate) const NAME: &str = "tiny.gguf";
/// The reference script's MD5, which is not computed here.
const MD5: &str = "0123456789abcdef0123456789abcdef";

/// The file's content: small, and different at every position where a download may resume.
pub(crate) fn content() -> Vec<u8> {
    (0..1200_u32).map(|i| (i % 251) as u8).collect()
}

/// Starts a mirror that runs until the process ends; returns its endpoint.
pub(crate) fn serve(row: &Value, gzip: &[u8]) -> String {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [host, other] = [0, 1].map(|i| listeners[i].local_addr().unwrap().to_string());
    let rules: Vec<Value> = row["rules"].as_array().unwrap().clone();
    let left = rules.iter().map(|rule| rule["times"].as_i64().unwrap_or(-1)).collect();
    let base = row["base"].as_str().unwrap().to_owned();
    let endpoint = format!("http://{host}{base}");
    let moved = row["moved"].as_str().map(str::to_owned);
    let mirror = Mirror { rules, left: Mutex::new(left), base, moved, gzip: gzip.to_vec(), host, other };
    let mirror = Arc::new(mirror);
    for (listener, is_other) in listeners.into_iter().zip([false, true]) {
        let mirror = mirror.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mirror = mirror.clone();
                thread::spawn(move || mirror.serve(stream, is_other));
            }
        });
    }
    endpoint
}

struct Mirror {
    rules: Vec<Value>,
    /// The number of times that each rule still applies; a negative number means always.
    left: Mutex<Vec<i64>>,
    base: String,
    moved: Option<String>,
    gzip: Vec<u8>,
    host: String,
    other: String,
}

#[derive(Default)]
struct Asked {
    method: String,
    target: String,
    from: usize,
    token: bool,
    at: &'static str,
}

/// An answer's status, headers and body.
type Parts = (u64, Vec<(String, String)>, Vec<u8>);

fn set(headers: &mut Vec<(String, String)>, name: &str, value: String) {
    headers.retain(|(known, _)| known != name);
    headers.push((name.to_owned(), value));
}

impl Mirror {
    fn serve(&self, mut stream: TcpStream, is_other: bool) {
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let first = lines.next().unwrap_or_default();
        let mut words = first.split(' ').map(str::to_owned);
        let mut asked = Asked {
            method: words.next().unwrap_or_default(),
            target: words.next().unwrap_or_default(),
            ..Asked::default()
        };
        for line in lines.take_while(|line| !line.is_empty()) {
            let line = line.to_lowercase();
            if let Some(range) = line.strip_prefix("range: bytes=") {
                asked.from = range.trim_end_matches('-').parse().unwrap();
            }
            asked.token |= line.starts_with("authorization:");
        }
        asked.at = if is_other { "other" } else { self.place(&asked) };
        // The client may have closed the connection.
        let _ = stream.write_all(&self.answer(&asked));
    }

    fn place(&self, asked: &Asked) -> &'static str {
        let (base, target) = (&self.base, asked.target.as_str());
        if self.moved.as_ref().is_some_and(|moved| self.filled(moved, asked) == target) {
            return "moved";
        }
        let root = if base.is_empty() { "/" } else { base.as_str() };
        match target {
            _ if target == root => "root",
            _ if target == format!("{base}/api/models/owner/tiny/revision/main") => "api",
            _ if target == format!("{base}/owner/tiny/resolve/{COMMIT}/{NAME}") => "file",
            _ => "nowhere",
        }
    }

    fn filled(&self, text: &str, asked: &Asked) -> String {
        let content = content();
        let (size, digest) = (content.len().to_string(), sha256(&content));
        let capitals = digest.to_uppercase();
        let sha1: String = Sha1::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        let values: [(&str, &str); 9] = [
            ("{host}", self.host.as_str()),
            ("{other}", self.other.as_str()),
            ("{path}", asked.target.as_str()),
            ("{commit}", COMMIT),
            ("{size}", size.as_str()),
            ("{SHA256}", capitals.as_str()),
            ("{sha256}", digest.as_str()),
            ("{sha1}", sha1.as_str()),
            ("{md5}", MD5),
        ];
        values.into_iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    /// The first matching rule that still applies.
    fn rule(&self, asked: &Asked) -> Value {
        let mut left = self.left.lock().unwrap();
        for (rule, left) in self.rules.iter().zip(left.iter_mut()) {
            let method = rule["method"].as_str().unwrap_or(&asked.method);
            let fits = rule["at"] == asked.at && method == asked.method;
            if fits && *left != 0 && (asked.from > 0 || rule["range"] != true) {
                *left -= 1;
                return rule.clone();
            }
        }
        Value::Null
    }

    fn answer(&self, asked: &Asked) -> Vec<u8> {
        let rule = self.rule(asked);
        if rule["reset"] == true {
            return Vec::new();
        }
        let mut status = rule["status"].as_u64().unwrap_or(if asked.at == "nowhere" { 404 } else { 200 });
        let refused_token = if asked.token { "forbidden" } else { "required" };
        if rule["token"] == refused_token {
            status = 401;
        }
        let (status, mut headers, mut body) = match status {
            300.. => (status, Vec::new(), Vec::new()),
            _ => self.good(asked, &rule),
        };
        match rule["framing"].as_str() {
            None => set(&mut headers, "content-length", body.len().to_string()),
            Some("chunked") => {
                set(&mut headers, "transfer-encoding", "chunked".to_owned());
                let size = format!("{:x}\r\n", body.len());
                body = [size.as_bytes(), &body[..], b"\r\n0\r\n\r\n"].concat();
            }
            Some(_) => {}
        }
        for (name, value) in rule["headers"].as_object().into_iter().flatten() {
            set(&mut headers, name, self.filled(value.as_str().unwrap(), asked));
        }
        for name in rule["without"].as_array().into_iter().flatten() {
            headers.retain(|(known, _)| name != known.as_str());
        }
        if rule["half"] == true {
            body.truncate(body.len() / 2);
        }
        if asked.method == "HEAD" {
            body.clear();
        }
        let fields: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("HTTP/1.1 {status} Said\r\n{fields}connection: close\r\n\r\n");
        [head.as_bytes(), &body[..]].concat()
    }

    /// The answer of a well-behaved hub.
    fn good(&self, asked: &Asked, rule: &Value) -> Parts {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let kind = rule["body"].as_str().unwrap_or("content");
        if asked.at == "root" || asked.at == "api" || kind == "list" {
            let list = format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "{NAME}"}}]}}"#);
            let body = if asked.at == "root" { Vec::new() } else { list.into_bytes() };
            return (200, vec![header("content-type", "application/json")], body);
        }
        let content = content();
        let mut headers = vec![header("content-type", "application/octet-stream")];
        if asked.at != "other" {
            headers.push(header("x-repo-commit", COMMIT));
            headers.push(header("etag", &format!("\"{}\"", sha256(&content))));
        }
        match kind {
            "page" => {
                set(&mut headers, "content-type", "text/html".to_owned());
                return (200, headers, b"<html>please log in</html>".to_vec());
            }
            "gzip" => {
                headers.push(header("content-encoding", "gzip"));
                return (200, headers, self.gzip.clone());
            }
            _ => {}
        }
        let from = if rule["ignores_range"] == true || asked.method == "HEAD" { 0 } else { asked.from };
        if from == 0 {
            return (200, headers, content);
        }
        if from >= content.len() {
            return (416, headers, Vec::new());
        }
        let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
        headers.push(header("content-range", &range));
        (206, headers, content[from..].to_vec())
    }
}
