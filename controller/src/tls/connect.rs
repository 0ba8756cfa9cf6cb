//! One connection: TCP, then TLS, then the server's first words.

use std::{fmt, io, str::FromStr, sync::Arc, time::Duration};

use rustls::{ClientConfig, client::Resumption, sign::SingleCertAndKey, version::TLS13};
use rustls_pki_types::ServerName;
use tokio::{io::AsyncBufReadExt, net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Credentials, ExpectedHost, HostVerifier, Loaded, TlsError};

/// The port of an agent where none is given.
pub const DEFAULT_PORT: u16 = 7443;
/// How long TCP and TLS may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server's first frame is waited for.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(1);

/// Where an agent listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    host: String,
    port: u16,
}

impl FromStr for Address {
    type Err = TlsError;

    fn from_str(value: &str) -> Result<Self, TlsError> {
        let malformed = || TlsError::Address { value: value.chars().take(256).collect() };
        let (host, port) = if let Some(rest) = value.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(malformed)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| malformed())?;
            (host, rest.strip_prefix(':').or(if rest.is_empty() { Some("") } else { None }).ok_or_else(malformed)?)
        } else if value.parse::<std::net::Ipv6Addr>().is_ok() {
            (value, "")
        } else {
            value.split_once(':').unwrap_or((value, ""))
        };
        let port = match port {
            "" if !value.ends_with(':') || host == value => DEFAULT_PORT,
            p => p.parse().ok().filter(|p| *p != 0).ok_or_else(malformed)?,
        };
        // What TLS takes as a name is what may be looked up.
        ServerName::try_from(host).map_err(|_| malformed())?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

/// An open connection to the host that was meant.
pub type Connection = TlsStream<TcpStream>;

/// Connects to the host `node` of `cluster` (`None`: any of the client's own trust domain), or says why not.
///
/// In TLS 1.3 a client's handshake is over before the server has looked at the client's certificate; a refusal comes afterwards and can be
/// lost when the client has sent something meanwhile. So the client waits for the server's first HTTP/2 frame, which an agent sends at once,
/// before it says anything. A server that waits for the client to begin costs a second.
pub async fn connect(
    address: &Address,
    cluster: Option<&str>,
    node: Option<&str>,
    credentials: &Credentials,
) -> Result<Connection, TlsError> {
    let credentials = credentials.clone();
    let loaded = tokio::task::spawn_blocking(move || credentials.current())
        .await
        .map_err(|e| TlsError::Handshake { address: address.to_string(), why: format!("reading the credentials failed: {e}") })?;
    let text = address.to_string();
    let expected = ExpectedHost {
        trust_domain: loaded.identity.trust_domain.clone(),
        cluster: cluster.map(str::to_owned),
        node: node.map(str::to_owned),
    };
    match timeout(CONNECT_TIMEOUT, handshake(address, &text, expected, &loaded)).await {
        Ok(result) => result,
        Err(_) => Err(TlsError::Timeout { address: text, after: CONNECT_TIMEOUT }),
    }
}

async fn handshake(address: &Address, text: &str, expected: ExpectedHost, loaded: &Loaded) -> Result<Connection, TlsError> {
    let unreachable = |e: io::Error| TlsError::Unreachable { address: text.to_owned(), why: e.to_string() };
    let tcp = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;

    let broken = |why: String| TlsError::Handshake { address: text.to_owned(), why };
    let config = config(expected, loaded).map_err(|e| broken(e.to_string()))?;
    let name = ServerName::try_from(address.host.clone()).map_err(|e| broken(e.to_string()))?;
    let identity = loaded.identity.to_string();
    let failed = |e: io::Error| TlsError::from_io(text, &identity, &e);
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(failed)?;
    if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(broken("the server does not speak HTTP/2 (ALPN h2)".to_owned()));
    }
    match timeout(FIRST_FRAME_TIMEOUT, tls.fill_buf()).await {
        Ok(Ok([])) => Err(failed(io::ErrorKind::UnexpectedEof.into())),
        Ok(Err(e)) => Err(failed(e)),
        Ok(Ok(_)) | Err(_) => Ok(tls),
    }
}

fn config(expected: ExpectedHost, loaded: &Loaded) -> Result<ClientConfig, rustls::Error> {
    let algorithms = loaded.provider.signature_verification_algorithms;
    let verifier = HostVerifier::new(expected, Arc::clone(&loaded.trust), algorithms);
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&loaded.provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&loaded.key))));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Every connection proves both sides anew.
    config.resumption = Resumption::disabled();
    // An agent has one certificate; a name in the clear tells nothing that it needs.
    config.enable_sni = false;
    Ok(config)
}
