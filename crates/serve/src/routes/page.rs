//! The chat page.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};

use crate::error::ApiError;

/// Where the chat page comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PageSource {
    /// The page that is built into this crate.
    #[default]
    BuiltIn,
    /// A directory with its files, which are read again for each request.
    Directory(PathBuf),
    /// There is no page.
    Off,
}

/// A file of the page, ready to be sent.
struct PageFile {
    name: &'static str,
    kind: &'static str,
    text: Vec<u8>,
    compressed: Vec<u8>,
    etag: HeaderValue,
}

impl PageFile {
    fn new(name: &'static str, kind: &'static str, text: Vec<u8>) -> Self {
        use std::io::Write as _;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        // Writing to memory does not fail; if it did, the file would be sent uncompressed.
        let written = encoder.write_all(&text).and_then(|()| encoder.finish());
        let compressed = written.unwrap_or_default();
        let digest = Sha256::digest(&text);
        let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let etag = HeaderValue::from_str(&format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"\""));
        Self { name, kind, text, compressed, etag }
    }
}

/// The page that a saved run is written into.
const TRACE: &str = "trace.html";
const INDEX: &str = "index.html";

fn built_in() -> &'static [PageFile] {
    static FILES: OnceLock<Vec<PageFile>> = OnceLock::new();
    FILES.get_or_init(|| {
        let own = moi_page::FILES.iter().map(|file| PageFile::new(file.name, file.kind, file.text.into()));
        let trace = PageFile::new(TRACE, "text/html; charset=utf-8", moi_page::trace_template().into_bytes());
        own.chain([trace]).collect()
    })
}

/// A file of the page by its path.
///
/// # Errors
/// If there is no such file.
pub(crate) fn file(source: &PageSource, path: &str, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let name = match path {
        "/" => INDEX,
        _ => path.strip_prefix("/page/").unwrap_or_default(),
    };
    let known = || built_in().iter().find(|file| file.name == name).ok_or_else(|| ApiError::no_route(path));
    match source {
        PageSource::Off => Err(ApiError::no_route(path)),
        PageSource::BuiltIn => Ok(sent(known()?, headers)),
        PageSource::Directory(directory) => {
            let file = known()?;
            let text = read(directory, file.name)?;
            Ok(sent(&PageFile::new(file.name, file.kind, text), headers))
        }
    }
}

fn read(directory: &Path, name: &str) -> Result<Vec<u8>, ApiError> {
    if name == TRACE {
        return Ok(moi_page::trace_template().into_bytes());
    }
    let path = directory.join(name);
    fs::read(&path).map_err(|error| ApiError::internal(format!("{}: {error}", path.display())))
}

fn sent(file: &PageFile, headers: &HeaderMap) -> Response<Body> {
    let text =
        |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let is_known = text(header::IF_NONE_MATCH).split(',').any(|etag| etag.trim() == file.etag);
    let takes_gzip = text(header::ACCEPT_ENCODING).split(',').any(|coding| {
        let mut parts = coding.split(';');
        parts.next().is_some_and(|name| name.trim().eq_ignore_ascii_case("gzip"))
            && !parts.any(|weight| {
                weight.trim().starts_with("q=0")
                    && !weight.contains(['1', '2', '3', '4', '5', '6', '7', '8', '9'])
            })
    });
    let is_compressed = takes_gzip && !file.compressed.is_empty();
    let body = match (is_known, is_compressed) {
        (true, _) => Vec::new(),
        (false, true) => file.compressed.clone(),
        (false, false) => file.text.clone(),
    };
    let mut response = Response::new(Body::from(body));
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.kind));
    headers.insert(header::ETAG, file.etag.clone());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if is_compressed && !is_known {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// The page loads its own files and nothing else, and no other page shows it in a frame.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'";
