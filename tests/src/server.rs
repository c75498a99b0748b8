//! Runs the binary as a server, and sends it requests over real sockets on this machine.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    ops::Deref,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::process::with_default_signals;

/// Time limit of everything that a test waits for; much more than is ever needed.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Waits until a condition holds; fails at the time limit.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < TEST_TIMEOUT, "it never came to be: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A client of a server.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// The address of the server.
    pub address: SocketAddr,
}

/// A running server. Dropping it kills the process.
pub struct TestServer {
    /// A client of this server.
    pub client: Client,
    /// The server process.
    pub child: Child,
    /// The stderr of the server so far.
    pub said: Arc<Mutex<String>>,
}

/// A response.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    /// The error object of the body, which must have all fields of an error.
    pub fn error(&self) -> Value {
        let value = self.json();
        for field in ["message", "type", "param", "code"] {
            assert!(value["error"].get(field).is_some(), "{value} has no {field}");
        }
        assert_eq!(self.header("content-type"), Some("application/json"));
        value["error"].clone()
    }

    /// The events of a streamed response, which must end with `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        events(&self.text())
    }
}

/// The events in the text of a stream, which must end with `[DONE]`. Comments are left out.
pub fn events(text: &str) -> Vec<Value> {
    let mut events = Vec::new();
    let mut is_done = false;
    for block in text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':')) {
        assert!(!is_done, "{block:?} behind [DONE]");
        let data = block.strip_prefix("data: ").unwrap_or_else(|| panic!("{block:?} is no event"));
        match data {
            "[DONE]" => is_done = true,
            _ => events.push(serde_json::from_str(data).unwrap()),
        }
    }
    assert!(is_done, "the stream has no [DONE]: {text:?}");
    events
}

impl TestServer {
    /// Starts a server on a free port, and waits until it is ready.
    pub fn start(args: &[&str]) -> Self {
        Self::start_as(with_default_signals(), args)
    }

    /// Starts a server with a given command, and waits until it is ready.
    pub fn start_as(command: Command, args: &[&str]) -> Self {
        let mut server = Self::listening(command, args);
        let begun = Instant::now();
        while !server.said.lock().unwrap().contains("ready:") {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "it has ended: {}", server.said.lock().unwrap());
            assert!(begun.elapsed() < TEST_TIMEOUT, "it is not ready: {}", server.said.lock().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Starts a server on a free port, and waits until it listens.
    pub fn start_loading(args: &[&str]) -> Self {
        Self::listening(with_default_signals(), args)
    }

    fn listening(mut command: Command, args: &[&str]) -> Self {
        command.args(["serve", "--port", "0"]).args(args).stdin(Stdio::null()).stdout(Stdio::null());
        if !args.contains(&"--model") {
            // The default model as its file has it: ten times as fast as in float32, and loaded in a third of the time.
            command.args(["--quantize", "file"]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            let read = stderr.read_line(&mut line).unwrap();
            said += &line;
            assert!(read > 0, "the server has ended: {said}");
            if let Some((_, rest)) =
                line.split_once("listening at http").and_then(|(_, at)| at.split_once("://"))
            {
                break rest.split([',', '\n']).next().unwrap().parse().unwrap();
            }
        };
        let said = Arc::new(Mutex::new(said));
        let own = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|read| read > 0) {
                own.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        Self { client: Client { address }, child, said }
    }

    /// Sends SIGTERM and waits. Returns the exit code.
    #[cfg(unix)]
    pub fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        let status = self.child.wait().unwrap();
        status.code()
    }

    /// Sends a signal to the server.
    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap();
        assert!(sent.success());
    }

    /// The resident memory of the server in bytes, if the system says so.
    pub fn resident(&self) -> Option<usize> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kilobytes| kilobytes << 10)
    }
}

impl Deref for TestServer {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Client {
    /// Opens a connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream
    }

    /// Sends a request with a body, and returns the connection.
    pub fn send(&self, path: &str, body: &Value) -> TcpStream {
        self.try_send(path, body).unwrap()
    }

    /// Sends a request to a server that may end meanwhile.
    ///
    /// # Errors
    /// If the server does not take it.
    pub fn try_send(&self, path: &str, body: &Value) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(TEST_TIMEOUT))?;
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        Ok(stream)
    }

    /// Posts a body and returns the response.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        reply(self.send(path, body))
    }

    /// Posts a body that must succeed, and returns the JSON.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        reply.json()
    }

    /// Posts a body as a streaming request, and returns the events.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let reply = self.post(path, &body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        reply.events()
    }

    /// Sends a GET request.
    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], b"")
    }

    /// Sends any request.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if headers.iter().all(|(name, _)| !name.eq_ignore_ascii_case("host")) {
            head += &format!("Host: {}\r\n", self.address);
        }
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        stream.write_all((head + "\r\n").as_bytes()).unwrap();
        // The write may fail, because a server may answer before it has read everything.
        let _ = stream.write_all(body);
        reply(stream)
    }

    /// The value of a metric, summed over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    /// Waits until no request runs or waits, and no cache memory belongs to a request.
    pub fn wait_until_idle(&self) {
        let begun = Instant::now();
        let gauges = ["vllm:num_requests_running", "vllm:num_requests_waiting", "moi_kv_bytes"];
        while gauges.iter().any(|gauge| self.metric(gauge) > 0.0) {
            assert!(begun.elapsed() < TEST_TIMEOUT, "it does not come to rest");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the server is idle, and checks that its metrics agree: gauges are 0, and every request that began
    /// has ended and was counted in every metric.
    pub fn settled(&self) {
        self.wait_until_idle();
        for gauge in ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"] {
            assert_eq!(self.metric(gauge), 0.0, "{gauge}");
        }
        let ended = self.metric("vllm:request_success_total");
        for name in ["e2e_request_latency", "request_queue_time"] {
            assert_eq!(self.metric(&format!("vllm:{name}_seconds_count")), ended, "{name}");
        }
        for name in ["request_prompt_tokens", "request_generation_tokens"] {
            assert_eq!(self.metric(&format!("vllm:{name}_count")), ended, "{name}");
        }
        let generated = self.metric("vllm:request_generation_tokens_sum");
        assert_eq!(self.metric("vllm:generation_tokens_total"), generated);
        let runs = self.get("/v1/moi/runs");
        if runs.status == 200 {
            assert_eq!(runs.json()["data"], serde_json::json!([]));
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // The process may already have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a response until the connection ends.
pub fn reply(stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let mut stream = stream;
    // A reset after the response does not invalidate the response.
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert!(!bytes.is_empty(), "no answer: {error}");
    }
    parsed(&bytes)
}

/// Parses a complete response.
pub fn parsed(bytes: &[u8]) -> Reply {
    let at = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let at = at.unwrap_or_else(|| panic!("no head: {:?}", String::from_utf8_lossy(bytes)));
    let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_lowercase(), value.trim().to_owned())
    };
    let headers: Vec<(String, String)> = lines.map(header).collect();
    let is_chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = &bytes[at + 4..];
    let body = if is_chunked { unchunked(body) } else { body.to_vec() };
    Reply { status, headers, body }
}

/// Decodes chunked transfer encoding, as far as the chunks are complete.
fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = bytes.windows(2).position(|two| two == b"\r\n") {
        let Ok(len) = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).unwrap(), 16) else { break };
        let data = &bytes[at + 2..];
        body.extend_from_slice(&data[..len.min(data.len())]);
        if len == 0 || data.len() < len + 2 {
            break;
        }
        bytes = &data[len + 2..];
    }
    body
}
