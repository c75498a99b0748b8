//! What names a model on the hub: `owner/name`, an address that was copied from a page, or a name with a quantisation.

use percent_encoding::percent_decode_str;
use url::Url;

use crate::{redirect::is_web, snapshot::is_plain};

/// A model in a hub repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelReference {
    /// owner/name
    pub repository: String,
    /// A commit, tag or branch.
    pub revision: Option<String>,
    /// A file of the repository, or a folder of GGUF files.
    pub file: Option<String>,
    /// What the name of a GGUF file has in it, `Q4_K_M` for example.
    pub quant: Option<String>,
}

/// Hosts of the public hub.
const HOSTS: &[&str] = &["huggingface.co", "www.huggingface.co", "hf.co"];
/// Pages of the hub that show a file or a folder at a revision.
const FILE_PAGES: &[&str] = &["tree", "blob", "resolve", "raw", "blame"];
/// First parts of addresses that are no model's.
const OTHER_KINDS: &[&str] = &["datasets", "spaces", "kernels", "buckets", "collections", "papers", "docs"];
/// How names end that are hosts rather than owners of repositories.
const HOST_ENDINGS: &[&str] = &[".ai", ".cn", ".co", ".com", ".dev", ".io", ".net", ".org"];

impl ModelReference {
    /// Reads a name or an address; `None` is what can only be a path of this machine or a name without an owner.
    ///
    /// # Errors
    /// If it is an address, but of no model on the hub at `endpoint`; the text says what to write.
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

    /// As it is written on the command line.
    pub(crate) fn with_quant(&self, quant: &str) -> String {
        format!("{}:{quant}", self.repository)
    }

    /// As it is written on the command line.
    pub(crate) fn with_file(&self, file: &str) -> String {
        format!("{}/{file}", self.repository)
    }
}

/// What can only be a path: absolute, relative by dots, of a home directory, or as Windows writes them.
fn is_path(text: &str) -> bool {
    let bytes = text.as_bytes();
    let has_drive = bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':';
    text.is_empty() || has_drive || text.starts_with(['/', '.', '~']) || text.contains('\\')
}

/// How hosts of the hub are written before a path: with and without a port.
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

/// `OWNER/NAME`, `OWNER/NAME:QUANT`, `OWNER/NAME@REVISION` or `OWNER/NAME/FILE`.
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

/// `hf://[models/]OWNER/NAME[@REVISION][/FILE]`, without its scheme.
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

/// The address of a repository's page or of one of its files.
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
            // The page of a GGUF repository names the file that it shows.
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

/// The parts of an address behind what says that it is of models.
fn of_models<'a, 'b>(text: &str, parts: &'a [&'b str]) -> Result<&'a [&'b str], String> {
    match parts {
        ["api", "models", rest @ ..] | ["models", rest @ ..] => Ok(rest),
        [kind, ..] if OTHER_KINDS.contains(kind) => {
            Err(format!("{} (it is an address of the hub's {kind})", write_instead(text)))
        }
        _ => Ok(parts),
    }
}

/// The revision at the beginning of a path; those of pull requests and conversions have slashes in them.
fn split_revision(path: &[String]) -> Option<(String, &[String])> {
    match path {
        [refs, kind, _, rest @ ..] if refs == "refs" && (kind == "pr" || kind == "convert") => {
            Some((path[..3].join("/"), rest))
        }
        [revision, rest @ ..] if !revision.is_empty() => Some((revision.clone(), rest)),
        _ => None,
    }
}

/// A name and what stands behind its colon, as llama.cpp and Ollama write quantisations.
fn split_quant<'a>(text: &str, name: &'a str) -> Result<(&'a str, Option<String>), String> {
    let Some((name, quant)) = name.split_once(':') else { return Ok((name, None)) };
    let is_plain_quant = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if quant.is_empty() || !quant.chars().all(is_plain_quant) {
        return Err(format!(
            "`{text}`: behind the colon a quantisation is expected, as in {name}:Q4_K_M; --revision names a revision"
        ));
    }
    // What Ollama writes where nothing is chosen.
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
    // Weights in safetensors do not run without the files beside them.
    let is_weights = |file: &String| {
        !file.contains('/') && (file.ends_with(".safetensors") || file.ends_with(".safetensors.index.json"))
    };
    file = file.filter(|file| !is_weights(file));
    // Ollama takes the name of a whole file for a quantisation too.
    let (file, quant) = match quant {
        Some(quant) if quant.to_ascii_lowercase().ends_with(".gguf") => (Some(quant), None),
        quant => (file, quant),
    };
    Ok(ModelReference { repository: format!("{owner}/{name}"), revision, file, quant })
}

/// What the hub allows as the name of an owner or a repository.
fn is_name(name: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=96).contains(&name.len())
        && name.starts_with(is_word)
        && name.ends_with(is_word)
        && name.chars().all(|c| is_word(c) || c == '-' || c == '.')
        && !name.contains("--")
        && !name.contains("..")
}

/// A part of an address as it was before it was escaped.
fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}
