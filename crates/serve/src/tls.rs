//! Connections that the server encrypts itself, for setups without a proxy that does.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::time::timeout;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    },
};

use crate::{ServeError, place::Stream};

/// How long the TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where a certificate and its key are, both as PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, followed by those that it is signed by.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Encrypts connections.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// # Errors
    /// If the files are not a certificate and its key.
    pub(crate) fn new(files: TlsFiles) -> Result<Self, ServeError> {
        let config = RwLock::new(config(&files)?);
        Ok(Self { files, config })
    }

    /// Reads the files again, for new connections.
    ///
    /// # Errors
    /// If they cannot be used. The previous ones then stay in use.
    pub(crate) fn reload(&self) -> Result<(), ServeError> {
        let config = config(&self.files)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Does the TLS handshake with a client; `None` if it fails or takes too long.
    pub(crate) async fn accept(&self, stream: Box<dyn Stream>) -> Option<Box<dyn Stream>> {
        let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner));
        let accepted = TlsAcceptor::from(config).accept(Pin::from(stream));
        let stream = timeout(HANDSHAKE, accepted).await.ok()?.ok()?;
        Some(Box::new(stream))
    }
}

fn config(TlsFiles { certificate, key }: &TlsFiles) -> Result<Arc<ServerConfig>, ServeError> {
    let wrong = |path: &Path, what: String| ServeError::Tls { path: path.to_owned(), what };
    let of_pem = |path: &Path, kind: &str, error: pem::Error| match error {
        pem::Error::Io(error) => wrong(path, error.to_string()),
        pem::Error::NoItemsFound => wrong(path, format!("it has no {kind} in PEM")),
        error => wrong(path, error.to_string()),
    };
    let certificates = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| of_pem(certificate, "certificate", error))?;
    if certificates.is_empty() {
        return Err(of_pem(certificate, "certificate", pem::Error::NoItemsFound));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| of_pem(key, "private key", error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, private));
    let mut config =
        config.map_err(|error| wrong(certificate, format!("with {}: {error}", key.display())))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
