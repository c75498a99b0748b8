//! Parses names of models on the hub: `owner/name`, the address of a web page, or a name with a quantisation.

use percent_encoding::percent_decode_str;
use url::Url;

use crate::{redirect::is_web, snapshot::is_plain};

/// A model in a hub repository.
///
/// # Examples
/// ```
/// use moi_hub::ModelReference;
///
/// let parse = |text| ModelReference::parse(text, "https://huggingface.co");
/// let (repository, quant) = ("owner/name".to_owned(), Some("Q4_K_M".to_owned()));
/// let expected = ModelReference { repository, quant, ..ModelReference::default() };
/// assert_eq!(parse("owner/name:Q4_K_M")?, Some(expected.clone()));
/// assert_eq!(parse("https://huggingface.co/owner/name:Q4_K_M")?, Some(expected));
/// assert_eq!(parse("./owner/name")?, None); // a path
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelReference {
    /// owner/name
    pub repository: String,
    /// A commit, tag or branch.
    pub revision: Option<String>,
    /// A file of the repository, or a folder of GGUF files.
    pub file: Option<String>,
    /// A quantisation that the name of a GGUF file contains, for example `Q4_K_M`.
    pub quant: Option<String>,
}

/// The hosts of the public hub.
const HOSTS: &[&str] = &["huggingface.co", "www.huggingface.co", "hf.co"];
/// The hub's pages that show a file or a folder at a revision.
const FILE_PAGES: &[&str] = &["tree", "blob", "resolve", "raw", "blame"];
/// First path components of the hub's addresses that belong to no model.
const OTHER_KINDS: &[&str] = &["datasets", "spaces", "kernels", "buckets", "collections", "papers", "docs"];
/// Endings that mark a name as a host rather than a repository's owner.
const HOST_ENDINGS: &[&str] = &[".ai", ".cn", ".co", ".com", ".dev", ".io", ".net", ".org"];

impl ModelReference {
    /// Parses a name or an address; `None` if it can only be a local path or a name without an owner.
    ///
    /// # Errors
    /// If it is an address, but of no model on the hub at `endpoint`; the text says what to write instead.
    pub fn parse(text: &str, endpoint: &str) -> Result<Option<Self>, String> {
        let text = text.trim();
        if is_path(text) {
            return Ok(None);
        }
        let endpoint = Url::parse(endpoint).ok();
        let lower = text.to_ascii_lowercase();
        if lower.starts_with("hf://") {
            return from_uri(text, &text["hf://".len()..]).map(Some);
        }
        if lower.starts_with("http://") || lower.starts_with("https://") {
            return from_address(text, text, endpoint.as_ref()).map(Some);
        }
        let first = lower.split('/').next().unwrap_or_default();
        if hosts(endpoint.as_ref()).iter().any(|host| host == first) {
            return from_address(text, &format!("https://{text}"), endpoint.as_ref()).map(Some);
        }
        let is_foreign_host =
            HOST_ENDINGS.iter().any(|ending| first.ends_with(ending)) && text.matches('/').count() >= 2;
        let is_foreign = ["http:", "https:", "git@", "www."].iter().any(|start| lower.starts_with(start));
        if text.contains("://") || is_foreign || is_foreign_host {
            return Err(write_instead(text));
        }
        from_name(text)
    }

    /// The reference with a quantisation, as written on the command line.
    pub(crate) fn with_quant(&self, quant: &str) -> String {
        format!("{}:{quant}", self.repository)
    }

    /// The reference with a file, as written on the command line.
    pub(crate) fn with_file(&self, file: &str) -> String {
        format!("{}/{file}", self.repository)
    }
}

/// Whether a text can only be a path: absolute, relative with dots, in a home directory, or in Windows' notation.
fn is_path(text: &str) -> bool {
    let bytes = text.as_bytes();
    let has_drive = bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':';
    text.is_empty() || has_drive || text.starts_with(['/', '.', '~']) || text.contains('\\')
}

/// The hub's hosts as they are written before a path, with and without a port.
fn hosts(endpoint: Option<&Url>) -> Vec<String> {
    let mut hosts: Vec<String> = HOSTS.iter().map(|&host| host.to_owned()).collect();
    if let Some(host) = endpoint.and_then(Url::host_str) {
        hosts.push(host.to_owned());
        if let Some(port) = endpoint.and_then(Url::port) {
            hosts.push(format!("{host}:{port}"));
        }
    }
    hosts
}

fn write_instead(text: &str) -> String {
    format!(
        "`{text}` is no address of a model on the hub; write OWNER/NAME, OWNER/NAME:QUANT or OWNER/NAME/FILE.gguf for a \
         repository, or the path of a file or directory"
    )
}

/// Parses `OWNER/NAME`, `OWNER/NAME:QUANT`, `OWNER/NAME@REVISION` or `OWNER/NAME/FILE`.
fn from_name(text: &str) -> Result<Option<ModelReference>, String> {
    let parts: Vec<&str> = text.trim_end_matches('/').split('/').collect();
    let [owner, name, path @ ..] = &parts[..] else { return Ok(None) };
    if path.iter().any(|part| part.contains(':')) {
        return Err(write_instead(text));
    }
    let (name, quant) = split_quant(text, name)?;
    let (name, revision) = match name.split_once('@') {
        Some((name, revision)) => (name, Some(revision.to_owned())),
        None => (name, None),
    };
    if !is_name(owner) || !is_name(name) || (!path.is_empty() && !is_plain(&path.join("/"))) {
        return Ok(None);
    }
    let path: Vec<String> = path.iter().map(|&part| part.to_owned()).collect();
    build(text, (*owner, name), revision, &path, quant).map(Some)
}

/// Parses `hf://[models/]OWNER/NAME[@REVISION][/FILE]`, given without its scheme as `rest`.
fn from_uri(text: &str, rest: &str) -> Result<ModelReference, String> {
    let parts: Vec<&str> = rest.trim_matches('/').split('/').collect();
    let (owner, name, path) = match of_models(text, &parts)? {
        [owner, name, path @ ..] => (*owner, *name, path),
        _ => return Err(write_instead(text)),
    };
    let (name, quant) = split_quant(text, name)?;
    let mut path: Vec<String> = path.iter().map(|&part| part.to_owned()).collect();
    let Some((name, revision)) = name.split_once('@') else {
        return build(text, (owner, name), None, &path, quant);
    };
    path.insert(0, revision.to_owned());
    let (revision, path) = split_revision(&path).ok_or_else(|| write_instead(text))?;
    build(text, (owner, name), Some(decoded(&revision)), path, quant)
}

/// Parses the address of a repository's page or of one of its files.
fn from_address(text: &str, address: &str, endpoint: Option<&Url>) -> Result<ModelReference, String> {
    let url = Url::parse(address).ok().filter(is_web).ok_or_else(|| write_instead(text))?;
    let host = url.host_str().unwrap_or_default();
    let is_endpoint = endpoint.and_then(Url::host_str) == Some(host);
    let prefix =
        endpoint.filter(|_| is_endpoint).map_or("", |endpoint| endpoint.path().trim_end_matches('/'));
    let below = url.path().strip_prefix(prefix).filter(|path| path.is_empty() || path.starts_with('/'));
    let path = below.unwrap_or(url.path());
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if !is_endpoint && !HOSTS.contains(&host) {
        let [owner, name, ..] = &parts[..] else { return Err(write_instead(text)) };
        let origin = url.origin().ascii_serialization();
        return Err(format!(
            "{}; if {host} is a mirror of the hub, set HF_ENDPOINT={origin} and write {owner}/{name}",
            write_instead(text)
        ));
    }
    let (owner, name, page) = match of_models(text, &parts)? {
        [owner, name, page @ ..] => (decoded(owner), decoded(name), page),
        _ => return Err(write_instead(text)),
    };
    let (name, quant) = split_quant(text, &name)?;
    let name = name.strip_suffix(".git").unwrap_or(name);
    let (page, path) = match page {
        [] => {
            // The address of a GGUF repository's page may name the file that it shows.
            let shown = url.query_pairs().find(|(key, _)| key == "show_file_info");
            let path: Vec<String> = shown.map(|(_, file)| file.into_owned()).into_iter().collect();
            return build(text, (owner.as_str(), name), None, &path, quant);
        }
        [page, path @ ..] => (*page, path.iter().map(|part| decoded(part)).collect::<Vec<String>>()),
    };
    if !FILE_PAGES.contains(&page) {
        return Err(format!("{}; {owner}/{name} for this page", write_instead(text)));
    }
    match split_revision(&path) {
        Some((revision, path)) => build(text, (owner.as_str(), name), Some(revision), path, quant),
        None => build(text, (owner.as_str(), name), None, &[], quant),
    }
}

/// The parts of an address behind the part that marks it as a model's.
fn of_models<'a, 'b>(text: &str, parts: &'a [&'b str]) -> Result<&'a [&'b str], String> {
    match parts {
        ["api", "models", rest @ ..] | ["models", rest @ ..] => Ok(rest),
        [kind, ..] if OTHER_KINDS.contains(kind) => {
            Err(format!("{} (it is an address of the hub's {kind})", write_instead(text)))
        }
        _ => Ok(parts),
    }
}

/// The revision at the beginning of a path; revisions of pull requests and conversions contain slashes.
fn split_revision(path: &[String]) -> Option<(String, &[String])> {
    match path {
        [refs, kind, _, rest @ ..] if refs == "refs" && (kind == "pr" || kind == "convert") => {
            Some((path[..3].join("/"), rest))
        }
        [revision, rest @ ..] if !revision.is_empty() => Some((revision.clone(), rest)),
        _ => None,
    }
}

/// Splits a name from the quantisation behind its colon, as llama.cpp and Ollama write it.
fn split_quant<'a>(text: &str, name: &'a str) -> Result<(&'a str, Option<String>), String> {
    let Some((name, quant)) = name.split_once(':') else { return Ok((name, None)) };
    let is_plain_quant = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if quant.is_empty() || !quant.chars().all(is_plain_quant) {
        return Err(format!(
            "`{text}`: behind the colon a quantisation is expected, as in {name}:Q4_K_M; --revision names a revision"
        ));
    }
    // Ollama's default tag means no choice of quantisation.
    let chosen = !quant.eq_ignore_ascii_case("latest");
    Ok((name, chosen.then(|| quant.to_owned())))
}

fn build(
    text: &str,
    (owner, name): (&str, &str),
    revision: Option<String>,
    path: &[String],
    quant: Option<String>,
) -> Result<ModelReference, String> {
    let mut file = Some(path.join("/")).filter(|file| !file.is_empty());
    let is_odd = |part: &Option<String>| part.as_ref().is_some_and(|part| !is_plain(part));
    if !is_name(owner) || !is_name(name) || is_odd(&file) || is_odd(&revision) {
        return Err(write_instead(text));
    }
    if let (Some(file), Some(quant)) = (&file, &quant) {
        return Err(format!("`{text}` names a file, {file}, and a quantisation, {quant}; write one of them"));
    }
    // safetensors cannot run without the other files, so such a file stands for the whole repository.
    let is_weights = |file: &String| {
        !file.contains('/') && (file.ends_with(".safetensors") || file.ends_with(".safetensors.index.json"))
    };
    file = file.filter(|file| !is_weights(file));
    // Ollama also accepts a whole file name in place of a quantisation.
    let (file, quant) = match quant {
        Some(quant) if quant.to_ascii_lowercase().ends_with(".gguf") => (Some(quant), None),
        quant => (file, quant),
    };
    Ok(ModelReference { repository: format!("{owner}/{name}"), revision, file, quant })
}

/// Whether the hub allows this name for an owner or a repository.
fn is_name(name: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=96).contains(&name.len())
        && name.starts_with(is_word)
        && name.ends_with(is_word)
        && name.chars().all(|c| is_word(c) || c == '-' || c == '.')
        && !name.contains("--")
        && !name.contains("..")
}

/// A part of an address with its escapes decoded.
fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}
