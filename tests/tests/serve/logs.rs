//! Tests of log lines, of settings that are reloaded, and of TLS.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use moi_tests::{
    bytes, process,
    server::{Reply, TestServer, parsed, until},
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};

use crate::{CHAT, TEXT, with};

/// The JSON log line of a request, when it has been written.
fn line(server: &TestServer, id: &str) -> Value {
    let find = || {
        let said = server.said.lock().unwrap().clone();
        let lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.into_iter().find(|line| line["id"] == id)
    };
    until(&format!("nothing is told of {id}: {}", server.said.lock().unwrap()), || find().is_some());
    find().unwrap()
}

fn post(server: &TestServer, id: &str, path: &str, body: &Value, headers: &[(&str, &str)]) -> Reply {
    let all = [&[("Content-Type", "application/json"), ("x-request-id", id)], headers].concat();
    server.request("POST", path, &all, body.to_string().as_bytes())
}

/// A line is written when an answer has ended, with its statistics; it has no prompt, unless --log-prompts is set.
#[test]
fn a_line_says_what_a_request_took() {
    let model = bytes::model("llama", &[], None);
    let args = ["--model", model.path().to_str().unwrap(), "--device", "cpu", "--log", "json"];
    let server = TestServer::start(&args);
    let body = json!({"prompt": "a secret", "max_tokens": 5, "n": 2, "ignore_eos": true});
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let reply = post(&server, "whole", TEXT, &body, &[("traceparent", &parent)]);
    assert_eq!(reply.status, 200);
    let told = line(&server, "whole");
    assert_eq!((&told["trace"], &told["owner"]), (&json!(trace), &json!("127.0.0.1")));
    assert_eq!((&told["prompt_tokens"], &told["completion_tokens"]), (&json!(8), &json!(10)));
    assert_eq!((&told["status"], &told["finish"]), (&json!(200), &json!(["length"])));
    let (first, all) = (&told["first_token_seconds"], &told["seconds"]);
    assert!(0.0 < first.as_f64().unwrap() && first.as_f64() <= all.as_f64(), "{told}");

    let streamed =
        with(body.clone(), json!({"stream": true, "n": 1, "ignore_eos": false, "stop_token_ids": [0]}));
    assert_eq!(post(&server, "stream", TEXT, &streamed, &[("traceparent", "nonsense")]).status, 200);
    let told = line(&server, "stream");
    assert!(told.get("trace").is_none() && told["first_token_seconds"].is_f64(), "{told}");
    // A request whose client disconnects during the answer.
    let endless = with(streamed, json!({"max_tokens": 500, "ignore_eos": true, "stop_token_ids": []}));
    let mut stream = server.send(TEXT, &endless);
    stream.read_exact(&mut [0; 200]).unwrap();
    drop(stream);
    // Refused requests, and requests of routes that generate nothing.
    assert_eq!(post(&server, "refused", TEXT, &json!({"prompt": ""}), &[]).status, 400);
    assert_eq!(line(&server, "refused")["status"], 400);
    let other = server.request("GET", "/v1/models", &[("x-request-id", "models")], b"");
    assert_eq!((other.status, line(&server, "models").get("finish")), (200, None));
    server.settled();
    until("nothing is told of the one who left", || server.said.lock().unwrap().contains("[\"abort\"]"));
    let said = server.said.lock().unwrap().clone();
    assert!(!said.contains("secret"), "{said}");

    let server = TestServer::start(&[&args[..4], &["--log", "text", "--log-prompts"]].concat());
    post(&server, "asked", TEXT, &body, &[("traceparent", &parent)]);
    until("no line", || {
        server.said.lock().unwrap().contains(&format!(", trace {trace}, prompt \"a secret\""))
    });
    let said = server.said.lock().unwrap().clone();
    assert!(said.contains("8 tokens of prompt (0 cached), 10 generated, the first after "), "{said}");
}

/// SIGHUP reloads the names and the log format from the file of `--config`, and the keys. A server with keys never
/// loses all of them.
#[test]
fn settings_are_read_again() {
    let model = bytes::model("llama", &[], None);
    let file = model.path().join("settings.toml");
    let write = |text: &str| fs::write(&file, format!("[defaults]\n{text}\n")).unwrap();
    write("alias = [\"old\"]\napi-key = [\"k1\"]\nlog = \"text\"");
    let path = model.path().to_str().unwrap();
    let mut command = process::with_default_signals();
    command.env("MOI_CONFIG", &file);
    let server = TestServer::start_as(command, &["--model", path, "--device", "cpu"]);
    let names = |key: &str| {
        let reply = server.request("GET", "/v1/models", &[("Authorization", &format!("Bearer {key}"))], b"");
        if reply.status != 200 {
            return json!(reply.status);
        }
        reply.json()["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect()
    };
    assert_eq!(names("k1"), json!(["old"]));
    write("alias = [\"new\", \"newer\"]\napi-key = [\"k2\"]\nlog = \"json\"");
    server.signal("HUP");
    until("the names are not read again", || names("k2") == json!(["new", "newer"]));
    assert_eq!(names("k1"), 401);
    let body = json!({"model": "newer", "prompt": "x", "max_tokens": 1});
    let asked = |name: &str| {
        let key = [("Authorization", "Bearer k2")];
        post(&server, name, TEXT, &with(body.clone(), json!({"model": name})), &key).status
    };
    assert_eq!((asked("newer"), asked("old")), (200, 404));
    assert_eq!(line(&server, "newer")["status"], 200);
    for wrong in ["alias = [\"open\"]", "alias = 5", "nonsense = true", "log = \"loud\""] {
        let before = server.said.lock().unwrap().matches("settings stay as they were").count();
        write(wrong);
        server.signal("HUP");
        until(wrong, || server.said.lock().unwrap().matches("settings stay as they were").count() > before);
        assert_eq!((names("k2"), names("")), (json!(["new", "newer"]), json!(401)), "{wrong}");
    }
    assert_eq!(server.stop(), Some(0));
}

fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tls").join(name)
}

/// A TLS connection of a client that trusts only this certificate.
fn encrypted(server: &TestServer, trusts: &str) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate(trusts)).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config.with_no_client_auth()), name).unwrap();
    StreamOwned::new(connection, server.connect())
}

fn asked(server: &TestServer, trusts: &str, body: &Value) -> std::io::Result<Reply> {
    let mut stream = encrypted(server, trusts);
    let body = body.to_string();
    write!(
        stream,
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(parsed(&bytes))
}

/// With a certificate the server encrypts connections, and SIGHUP reloads the certificate. Clients without TLS, and
/// clients that send nothing, must not block others.
#[test]
fn connections_are_encrypted_by_a_certificate() {
    let model = bytes::model("llama", &[], None);
    let copy = |from: &str, to: &str| fs::copy(certificate(from), model.path().join(to)).unwrap();
    copy("first.pem", "cert.pem");
    copy("first.key.pem", "key.pem");
    fs::write(model.path().join("none.toml"), "").unwrap();
    let path = |name: &str| model.path().join(name).to_str().unwrap().to_owned();
    let (cert, key, config) = (path("cert.pem"), path("key.pem"), path("none.toml"));
    let mut command = process::with_default_signals();
    command.env("MOI_CONFIG", &config);
    let own = model.path().to_str().unwrap();
    let server = TestServer::start_as(
        command,
        &["--model", own, "--device", "cpu", "--tls-cert", &cert, "--tls-key", &key],
    );
    assert!(server.said.lock().unwrap().contains("ready: https://127.0.0.1:"));
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 30, "stream": true, "ignore_eos": true});
    let silent = server.connect();
    let mut plain = server.send(CHAT, &body);
    let mut answer = Vec::new();
    let read = plain.read_to_end(&mut answer);
    assert!(read.is_err() || !answer.starts_with(b"HTTP"), "what is not encrypted is not answered");
    let reply = asked(&server, "first.pem", &body).unwrap();
    assert_eq!(
        (reply.status, reply.events().last().unwrap()["choices"][0]["finish_reason"].as_str()),
        (200, Some("length"))
    );
    assert!(asked(&server, "second.pem", &body).is_err(), "it is another certificate");
    copy("second.pem", "cert.pem");
    copy("second.key.pem", "key.pem");
    server.signal("HUP");
    until("the certificate is not read again", || asked(&server, "second.pem", &body).is_ok());
    assert!(asked(&server, "first.pem", &body).is_err());
    // A file that is not a certificate must not change anything.
    fs::write(&cert, "nonsense").unwrap();
    server.signal("HUP");
    until("nothing is said", || server.said.lock().unwrap().contains("certificate stays as it was"));
    assert!(asked(&server, "second.pem", &body).is_ok());
    drop(silent);
    assert_eq!(server.stop(), Some(0));
    let refused = |cert: &str, key: &str, parts: &[&str]| {
        process::refused(
            &["serve", "--model", own, "--port", "0", "--tls-cert", cert, "--tls-key", key],
            parts,
        );
    };
    refused(&cert, &key, &["cert.pem", "it has no certificate in PEM"]);
    refused(certificate("first.pem").to_str().unwrap(), &key, &["first.pem", "key.pem"]);
    refused(certificate("first.pem").to_str().unwrap(), &path("missing"), &["missing", "No such file"]);
}
