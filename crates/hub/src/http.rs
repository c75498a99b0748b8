//! Files from a hub over HTTP: resumed where they broke off, never longer or shorter than announced.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::{Response, StatusCode, header},
};

use crate::{
    FetchError,
    snapshot::{hub_home, path_in},
};

/// How long the hub may take to answer before another source is tried.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one answer may take to come in; what is left is then asked for anew, so that a connection that has died
/// without a word is noticed. Of a server that cannot send what is left alone it is all of it, with twice as long each
/// time.
const ANSWER: Duration = Duration::from_secs(120);
/// The longest that it gets.
const MOST_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// Attempts in a row that may bring nothing.
const ATTEMPTS: u32 = 4;
/// Redirects from one address of the hub to another.
const REDIRECTS: usize = 5;

/// A hub.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) endpoint: String,
    pub(crate) quiet: bool,
    /// Before the second attempt; twice as long before each further one.
    pub(crate) pause: Duration,
    /// How long the first answer may take to come in.
    pub(crate) patience: Duration,
    token: Option<String>,
}

/// What is known of a file before it is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) commit: String,
    pub(crate) etag: String,
    pub(crate) size: u64,
}

impl Client {
    pub(crate) fn new(endpoint: String) -> Self {
        Self { endpoint, quiet: false, pause: Duration::from_secs(1), patience: ANSWER, token: token() }
    }

    fn agent(&self, follows: bool, patience: Duration) -> Agent {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("moi/", env!("CARGO_PKG_VERSION")))
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(PATIENCE * 2))
            .timeout_recv_response(Some(ANSWER))
            .timeout_recv_body(Some(patience));
        let config = if follows { config } else { config.max_redirects(0).max_redirects_will_error(false) };
        config.build().into()
    }

    /// Whether the hub answers at all, whatever it says.
    pub(crate) fn check_reachable(&self) -> Result<(), FetchError> {
        let unreachable =
            |reason: String| FetchError::Unreachable { endpoint: self.endpoint.clone(), reason };
        if std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| !matches!(value.as_str(), "" | "0")) {
            return Err(unreachable("HF_HUB_OFFLINE is set".into()));
        }
        let config = Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false);
        let answer = Agent::from(config.build()).head(&self.endpoint).call();
        answer.map(drop).map_err(|error| unreachable(error.to_string()))
    }

    fn ask(&self, agent: &Agent, head: bool, url: &str, from: u64) -> Result<Response<Body>, String> {
        let mut request = if head { agent.head(url) } else { agent.get(url) };
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.call().map_err(|error| error.to_string())
    }

    /// A JSON document.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        url: &str,
        what: &str,
    ) -> Result<T, FetchError> {
        const MOST_BYTES: u64 = 32 << 20;
        let refused = |reason: String| FetchError::Hub { what: what.to_owned(), reason };
        let mut answer = self.ask(&self.agent(true, ANSWER), false, url, 0).map_err(refused)?;
        check(&answer).map_err(refused)?;
        let text = answer.body_mut().with_config().limit(MOST_BYTES).read_to_vec();
        let text = text.map_err(|error| refused(error.to_string()))?;
        serde_json::from_slice(&text)
            .map_err(|error| refused(format!("the answer is not what a hub says: {error}")))
    }

    /// Commit, etag and size of a file, as the hub itself has them; where its content lies elsewhere is not asked.
    pub(crate) fn meta(&self, url: &str, what: &str) -> Result<Meta, FetchError> {
        let refused = |reason: String| FetchError::Hub { what: what.to_owned(), reason };
        let agent = self.agent(false, ANSWER);
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let answer = self.ask(&agent, true, &url, 0).map_err(refused)?;
            let location = text(&answer, "location").filter(|_| answer.status().is_redirection());
            match location {
                // Renamed repositories; other hosts are where contents lie.
                Some(path) if path.starts_with('/') && !path.starts_with("//") => {
                    url = self.endpoint.trim_end_matches('/').to_owned() + path;
                    continue;
                }
                None => check(&answer).map_err(refused)?,
                Some(_) => {}
            }
            let need = |names: [&str; 2]| {
                let found = names.iter().find_map(|name| text(&answer, name));
                found.ok_or_else(|| {
                    refused(format!("the answer lacks the header {}; it is not a hub's", names[1]))
                })
            };
            let etag = need(["x-linked-etag", "etag"])?.trim_start_matches("W/").replace('"', "");
            let commit = need(["x-repo-commit", "x-repo-commit"])?.to_owned();
            let size = need(["x-linked-size", "content-length"])?;
            let size =
                size.parse().map_err(|_| refused(format!("its size is {size:?}, expected a number")))?;
            for (name, value) in [("etag", &etag), ("x-repo-commit", &commit)] {
                // It becomes the name of a file.
                let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
                if !plain || value.is_empty() || value.len() > 128 {
                    return Err(refused(format!(
                        "the header {name} is {value:?}, expected letters and digits"
                    )));
                }
            }
            return Ok(Meta { commit, etag, size });
        }
        Err(refused("it redirects in a circle".into()))
    }

    /// Fetches a file of `size` bytes into `part`, behind what an earlier attempt has left there.
    ///
    /// # Errors
    /// If the hub refuses it, sends another number of bytes, or the connection breaks again and again; what came until
    /// then stays in `part`.
    pub(crate) fn fetch(&self, url: &str, size: u64, part: &Path, what: &str) -> Result<(), FetchError> {
        let io_error = |error| FetchError::Io { path: part.to_owned(), error };
        let mut file = File::options().create(true).append(true).open(part).map_err(io_error)?;
        let bar = self.bar(size, what);
        let mut patience = self.patience;
        let mut agent = self.agent(true, patience);
        let (mut failed, mut have) = (0, file.metadata().map_err(io_error)?.len());
        if have > size {
            file.set_len(0).map_err(io_error)?;
            have = 0;
        }
        // The most that there was: a server that begins anew each time may come as far as before, again and again.
        let mut most = have;
        while have < size {
            bar.set_position(have);
            let (before, mut began_anew) = (have, false);
            let error = match self.attempt(&agent, url, size, &mut file, &bar, &mut began_anew) {
                Ok(()) => None,
                Err(Broken::Off(reason)) => Some(reason),
                Err(Broken::Refused(reason)) => {
                    return Err(FetchError::Hub { what: what.to_owned(), reason });
                }
                Err(Broken::Disk(error)) => return Err(io_error(error)),
            };
            have = file.metadata().map_err(io_error)?.len();
            failed = if have > most || (have > before && !began_anew) { 0 } else { failed + 1 };
            most = most.max(have);
            if let (Some(reason), true) = (error, failed >= ATTEMPTS) {
                let reason = format!(
                    "{reason}, {failed} times in a row; {have} of {size} bytes are kept for the next try"
                );
                return Err(FetchError::Hub { what: what.to_owned(), reason });
            }
            if began_anew {
                patience = (patience * 2).min(MOST_PATIENCE);
                agent = self.agent(true, patience);
            }
            if have < size {
                thread::sleep(self.pause * 2u32.pow(failed));
            }
        }
        bar.finish_and_clear();
        // What is renamed must be on the disk before its name is.
        file.sync_all().map_err(io_error)
    }

    /// Asks once for what is missing; `began_anew` tells whether what was there had to go for it.
    fn attempt(
        &self,
        agent: &Agent,
        url: &str,
        size: u64,
        file: &mut File,
        bar: &ProgressBar,
        began_anew: &mut bool,
    ) -> Result<(), Broken> {
        let have = file.metadata().map_err(Broken::Disk)?.len();
        let mut answer = self.ask(agent, false, url, have).map_err(Broken::Off)?;
        let resumed = answer.status() == StatusCode::PARTIAL_CONTENT
            && text(&answer, "content-range")
                .is_some_and(|range| range.starts_with(&format!("bytes {have}-")));
        match answer.status() {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                return Err(Broken::Off(format!("it answered {}", answer.status())));
            }
            status if status.is_server_error() => return Err(Broken::Off(format!("it answered {status}"))),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                file.set_len(0).map_err(Broken::Disk)?;
                return Err(Broken::Off("it cannot resume".into()));
            }
            _ => check(&answer).map_err(Broken::Refused)?,
        }
        let announced = text(&answer, "content-length").and_then(|length| length.parse::<u64>().ok());
        let missing = if resumed { size - have } else { size };
        if let Some(announced) = announced.filter(|&announced| announced != missing) {
            return Err(Broken::Refused(format!("it has {announced} bytes to send, expected {missing}")));
        }
        if !resumed {
            // The server cannot resume: it sends all of it again.
            *began_anew = have > 0;
            file.set_len(0).map_err(Broken::Disk)?;
            bar.set_position(0);
        }
        // One byte more than expected tells that there is more.
        let mut body = answer.body_mut().as_reader().take(missing.saturating_add(1));
        let copied = copy(&mut body, file, bar)?;
        match copied.cmp(&missing) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(Broken::Off("the connection broke off".into())),
            std::cmp::Ordering::Greater => {
                file.set_len(0).map_err(Broken::Disk)?;
                Err(Broken::Refused(format!("it sends more than the {size} bytes that were announced")))
            }
        }
    }

    fn bar(&self, size: u64, what: &str) -> ProgressBar {
        let style = ProgressStyle::with_template(
            "{msg} [{bar:30}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
        );
        let bar = ProgressBar::new(size).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        // Small files come in no time.
        if self.quiet || size < 1 << 20 {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.with_message(what.to_owned())
    }
}

/// Why an attempt did not bring the rest.
enum Broken {
    /// The connection; another attempt may help.
    Off(String),
    /// The server does not have what was asked for.
    Refused(String),
    Disk(io::Error),
}

fn copy(from: &mut impl Read, to: &mut File, bar: &ProgressBar) -> Result<u64, Broken> {
    let mut buffer = vec![0; 1 << 16];
    let mut copied = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(n) => {
                to.write_all(&buffer[..n]).map_err(Broken::Disk)?;
                copied += n as u64;
                bar.inc(n as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::Off(format!("the connection broke off ({error})"))),
        }
    }
}

/// A header.
fn text<'a>(answer: &'a Response<Body>, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// Refuses what is no success, and pages that something on the way has put in its place.
fn check(answer: &Response<Body>) -> Result<(), String> {
    let status = answer.status();
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; it may be private or gated: accept its terms on the hub and set HF_TOKEN"
        }
        StatusCode::NOT_FOUND => "; there is no such file, revision or repository",
        _ => "",
    };
    if !status.is_success() {
        return Err(format!("it answered {status}{hint}"));
    }
    match text(answer, "content-type") {
        Some(kind) if kind.starts_with("text/html") => {
            Err("it answered with an HTML page where a file was expected; a proxy or a login page may be in the way".into())
        }
        _ => Ok(()),
    }
}

/// As the hub's own tools find it.
fn token() -> Option<String> {
    let from_file = |path: PathBuf| fs::read_to_string(path).ok();
    let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()).or_else(|| {
        path_in("HF_TOKEN_PATH").and_then(from_file).or_else(|| from_file(hub_home()?.join("token")))
    })?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}
