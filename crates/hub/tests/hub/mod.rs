//! A hub on this machine that can simulate faults.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part; a failure must end the test")]

pub(crate) mod mirror;

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use moi_hub::{Advised, Cache, Entry, Fetcher, Hub as Repository, Licence, Package};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789012345678901234567890123456789";

/// A file that the hub serves.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
    pub(crate) etag: String,
}

/// The faults of the server when it serves content.
#[derive(Clone, Copy, Default)]
pub(crate) struct Manners {
    /// The server sends the whole file, whatever range is requested.
    pub(crate) ignores_ranges: bool,
    /// This many answers break off half way.
    pub(crate) breaks: usize,
    /// Every other broken answer breaks off after a third.
    pub(crate) uneven: bool,
    /// This many answers say that the server is busy.
    pub(crate) busy: usize,
    /// The server answers with an HTML page.
    pub(crate) html: bool,
    /// The server states no length, and closes the connection at the end.
    pub(crate) says_no_length: bool,
    /// The server sends some bytes more than it has announced.
    pub(crate) sends_more: bool,
    /// A pause after every 64 kB.
    pub(crate) slow: Option<Duration>,
    /// The server redirects requests for content to another of its addresses.
    pub(crate) redirects: bool,
}

/// A server that runs until the process ends.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    /// The method, path and range of each request.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// The first byte of each requested content range.
    pub(crate) fn ranges(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let gets = asked.iter().filter(|line| line.starts_with("GET") && !line.contains("/api/"));
        gets.map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
    }
}

struct Request {
    head: bool,
    path: String,
    range: String,
    first_byte: bool,
}

fn read(stream: &TcpStream) -> Request {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let (mut range, mut first_byte) = (String::new(), false);
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some(value) = line.to_lowercase().strip_prefix("range: bytes=") {
            range = value.trim_end_matches('-').to_owned();
            // hf-hub requests the first byte to learn the length.
            first_byte = range == "0-0";
        }
    }
    let mut words = first.split(' ');
    let head = words.next() == Some("HEAD");
    Request { head, path: words.next().unwrap_or_default().to_owned(), range, first_byte }
}

/// Serves files, each connection on a thread of its own.
pub(crate) fn serve(files: Vec<File>, manners: Manners) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (seen, left) = (asked.clone(), Arc::new(Mutex::new(manners)));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), files) = (stream, files.clone()) else { continue };
            let (seen, left) = (seen.clone(), left.clone());
            thread::spawn(move || {
                let request = read(&stream);
                let method = if request.head { "HEAD" } else { "GET" };
                seen.lock().unwrap().push(format!("{method} {} {}", request.path, request.range));
                // The client may have closed the connection.
                let _ = answer(&mut stream, &request, &files, &left);
            });
        }
    });
    Server { endpoint, asked }
}

fn answer(
    stream: &mut TcpStream,
    request: &Request,
    files: &[File],
    left: &Mutex<Manners>,
) -> std::io::Result<()> {
    let path = request.path.trim_start_matches("/elsewhere");
    let moved = path.len() < request.path.len();
    let Some(File { content, etag, .. }) = files.iter().find(|file| file.path == path) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let manners = *left.lock().unwrap();
    let mut about = format!("x-repo-commit: {COMMIT}\r\netag: \"{etag}\"\r\nconnection: close\r\n");
    if path.ends_with('/') {
        // This is a list of packages, not a file of a model.
        about += "content-type: text/html\r\n";
    }
    if request.path.starts_with("/api/") || request.head && !manners.html && (moved || !manners.redirects) {
        let length = content.len();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{about}\r\n");
        stream.write_all(head.as_bytes())?;
        return if request.head { Ok(()) } else { stream.write_all(content) };
    }
    if request.first_byte {
        let length = content.len();
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-0/{length}\r\ncontent-length: 1\r\n{about}\r\n"
        );
        stream.write_all(head.as_bytes())?;
        return stream.write_all(&content[..1]);
    }
    if manners.html {
        let page = "<html>please log in</html>";
        let length = page.len();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {length}\r\n\r\n{page}");
        return stream.write_all(head.as_bytes());
    }
    if manners.redirects && !moved {
        let length = content.len();
        let head = format!(
            "HTTP/1.1 302 Found\r\nlocation: http://{}/elsewhere{path}\r\nx-linked-size: {length}\r\n\
             x-linked-etag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            stream.local_addr()?
        );
        return stream.write_all(head.as_bytes());
    }
    if manners.busy > 0 {
        left.lock().unwrap().busy -= 1;
        return stream.write_all(
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
    }
    let from = if manners.ignores_ranges { 0 } else { request.range.parse().unwrap_or(0) };
    if from >= content.len() {
        return stream.write_all(
            b"HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
    }
    send(stream, content, from, &about, left)
}

fn send(
    stream: &mut TcpStream,
    content: &[u8],
    from: usize,
    about: &str,
    left: &Mutex<Manners>,
) -> std::io::Result<()> {
    let manners = *left.lock().unwrap();
    let mut body = &content[from..];
    let status = match from {
        0 => "200 OK".to_owned(),
        _ => format!(
            "206 Partial Content\r\ncontent-range: bytes {from}-{}/{}",
            content.len() - 1,
            content.len()
        ),
    };
    let length =
        if manners.says_no_length { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    stream.write_all(format!("HTTP/1.1 {status}\r\n{length}{about}\r\n").as_bytes())?;
    if manners.breaks > 0 {
        left.lock().unwrap().breaks -= 1;
        let sooner = manners.uneven && manners.breaks.is_multiple_of(2);
        body = &body[..body.len() / if sooner { 3 } else { 2 }];
    }
    for piece in body.chunks(1 << 16) {
        stream.write_all(piece)?;
        if let Some(pause) = manners.slow {
            thread::sleep(pause);
        }
    }
    if manners.sends_more { stream.write_all(b"more") } else { Ok(()) }
}

/// Bytes that differ at every position.
pub(crate) fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A catalogue entry for this content, in the repository `owner/tiny`.
pub(crate) fn entry(content: &[u8], packages: &'static [Package]) -> &'static Entry {
    Box::leak(Box::new(Entry {
        name: "tiny",
        parameters_millions: 0,
        file: "tiny.gguf",
        size: content.len() as u64,
        sha256: sha256(content).leak(),
        licence: Licence { name: "MIT", notice: Some("Terms apply") },
        hub: Repository { repository: "owner/tiny", revision: "main" },
        packages,
        sampling: Advised { temperature: None, top_k: None, top_p: None },
    }))
}

/// A hub that serves this content.
pub(crate) fn hub(content: &[u8], manners: Manners) -> Server {
    let path = "/owner/tiny/resolve/main/tiny.gguf".to_owned();
    serve(vec![File { path, content: content.to_vec(), etag: sha256(content) }], manners)
}

/// git's hash of a file with this content.
pub(crate) fn git(bytes: &[u8]) -> String {
    let digest = Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A repository of files; large files (weights) have their SHA-256 as an etag.
pub(crate) fn repository(files: &[(&str, &[u8])]) -> Vec<File> {
    let siblings: Vec<String> =
        files.iter().map(|(name, _)| format!(r#"{{"rfilename": "{name}"}}"#)).collect();
    let info = format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, siblings.join(","));
    let path = "/api/models/owner/tiny/revision/main".to_owned();
    let mut all = vec![File { path, content: info.into_bytes(), etag: String::new() }];
    all.extend(files.iter().map(|&(name, content)| File {
        path: format!("/owner/tiny/resolve/{COMMIT}/{name}"),
        content: content.to_vec(),
        etag: if name.ends_with(".safetensors") { sha256(content) } else { git(content) },
    }));
    all
}

pub(crate) fn fetcher(directory: &Path, endpoint: &str) -> Fetcher {
    Fetcher::new(Cache::new(directory.join("cache")))
        .with_hub_cache(directory.join("hub"))
        .with_endpoint(endpoint)
        .with_pause(Duration::from_millis(5))
        .quiet()
}

/// Reports that a test could not run here. With `CI` set this fails, because CI must run all tests.
pub(crate) fn not_run(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}, and nothing is left out where CI is set");
    eprintln!("NOT RUN: {why}");
}

/// An endpoint at which no server listens.
pub(crate) fn nobody() -> String {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("http://{closed}")
}
