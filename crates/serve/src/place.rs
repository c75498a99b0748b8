//! Where a server listens: at a TCP address, at a Unix socket, or at a socket that the process was started with.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    path::PathBuf,
};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::ServeError;

/// What to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`; port 0 takes a free port.
    Tcp(String),
    /// A Unix socket, which its owner and its group may use.
    Unix(PathBuf),
    /// The socket that the process was started with, as by systemd (`LISTEN_FDS`).
    Inherited,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener),
}

impl Socket {
    /// Binds the address and listens.
    ///
    /// # Errors
    /// If the system refuses that.
    pub(crate) fn open(address: &Address) -> Result<(Self, Place), ServeError> {
        let wrong = |error: io::Error| {
            let address = match address {
                Address::Tcp(address) => address.clone(),
                Address::Unix(path) => path.display().to_string(),
                Address::Inherited => "the socket that the process was started with".to_owned(),
            };
            ServeError::Bind { address, error }
        };
        let opened = match address {
            Address::Tcp(address) => tcp(address),
            Address::Unix(path) => unix(path),
            Address::Inherited => inherited(),
        };
        opened.map_err(wrong)
    }
}

fn tcp(address: &str) -> io::Result<(Socket, Place)> {
    let candidates: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    let listener = TcpListener::bind(&candidates[..])?;
    listener.set_nonblocking(true)?;
    let place = Place::Tcp(listener.local_addr()?);
    Ok((Socket::Tcp(listener), place))
}

#[cfg(unix)]
fn unix(path: &std::path::Path) -> io::Result<(Socket, Place)> {
    use std::{
        fs,
        os::unix::{
            fs::{FileTypeExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    };

    // Removes a socket that a crashed server has left behind, but no other file and no socket that is in use.
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // Connecting needs write permission, which until here only the owner has.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok((Socket::Unix(listener), Place::Unix(path.to_owned())))
}

#[cfg(not(unix))]
fn unix(_path: &std::path::Path) -> io::Result<(Socket, Place)> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "there are no sockets of the file system here"))
}

#[cfg(unix)]
fn inherited() -> io::Result<(Socket, Place)> {
    let mut sockets = listenfd::ListenFd::from_env();
    let missing = || io::Error::new(io::ErrorKind::NotFound, "it was started with none (LISTEN_FDS)");
    if sockets.len() == 0 {
        return Err(missing());
    }
    if let Ok(Some(listener)) = sockets.take_unix_listener(0) {
        listener.set_nonblocking(true)?;
        let path = listener.local_addr()?.as_pathname().map(PathBuf::from).unwrap_or_default();
        return Ok((Socket::Unix(listener), Place::Unix(path)));
    }
    let listener = sockets.take_tcp_listener(0)?.ok_or_else(missing)?;
    listener.set_nonblocking(true)?;
    let place = Place::Tcp(listener.local_addr()?);
    Ok((Socket::Tcp(listener), place))
}

#[cfg(not(unix))]
fn inherited() -> io::Result<(Socket, Place)> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "processes are started with no sockets here"))
}

/// A connection of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

/// A listening socket in the async runtime.
pub(crate) enum Listener {
    Tcp(tokio::net::TcpListener),
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
}

impl Listener {
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        match socket {
            Socket::Tcp(listener) => tokio::net::TcpListener::from_std(listener).map(Self::Tcp),
            #[cfg(unix)]
            Socket::Unix(listener) => tokio::net::UnixListener::from_std(listener).map(Self::Unix),
        }
    }

    /// The next connection, and the address of its client; `None` for a Unix socket.
    pub(crate) async fn accept(&self) -> io::Result<(Box<dyn Stream>, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Small events should not wait for others. If this cannot be set, they only come later.
                let _ = stream.set_nodelay(true);
                // The system would otherwise buffer megabytes for a client that does not read.
                let _ = socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
                Ok((Box::new(stream), Some(peer)))
            }
            #[cfg(unix)]
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let _ = socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
                Ok((Box::new(stream), None))
            }
        }
    }
}

/// Bytes that the system buffers for a client.
const SEND_BUFFER: usize = 128 << 10;
