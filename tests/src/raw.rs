//! gRPC by hand: any method of the descriptor set with an empty message, as any client, or as nobody.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use pvelet_controller::tls::{self, Credentials};
use rustls::{ClientConfig, RootCertStore, crypto::ring, version::TLS13};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Status};

use crate::{Agent, Pki};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);
/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Every method of the API and of the other services that an agent offers: `/<package>.<service>/<method>`.
pub fn methods() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(pvelet_proto::FILE_DESCRIPTOR_SET).expect("the descriptor set");
    let mut all: Vec<String> = set
        .file
        .iter()
        .flat_map(|f| f.service.iter().map(move |s| (f.package().to_owned(), s)))
        .flat_map(|(package, s)| s.method.iter().map(move |m| format!("/{package}.{}/{}", s.name(), m.name())))
        .collect();
    all.extend(["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"].map(str::to_owned));
    all.extend(["v1", "v1alpha"].map(|v| format!("/grpc.reflection.{v}.ServerReflection/ServerReflectionInfo")));
    all
}

/// An open connection to an agent.
pub struct Raw {
    sender: SendRequest<Full<Bytes>>,
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raw").finish_non_exhaustive()
    }
}

impl Raw {
    /// Connects as a client with these credentials.
    ///
    /// # Errors
    /// The handshake's.
    pub async fn connect(agent: &Agent, credentials: &Credentials) -> Result<Self, tls::TlsError> {
        let address = agent.address.to_string().parse().expect("an address");
        Ok(Self::over(tls::connect(&address, Some(&agent.cluster), Some(&agent.node), credentials).await?).await)
    }

    async fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.expect("HTTP/2");
        tokio::spawn(connection);
        Self { sender }
    }

    /// Calls a method with an empty message, and gives its status as soon as the agent has begun to answer: of a stream that goes on it is
    /// OK.
    pub async fn call(&self, path: &str) -> Status {
        let request = http::Request::post(format!("https://agent{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from_static(&[0, 0, 0, 0, 0])))
            .expect("a request");
        let answer = async {
            let mut response = match self.sender.clone().send_request(request).await {
                Ok(response) => response,
                Err(error) => return Status::unavailable(error.to_string()),
            };
            if let Some(status) = Status::from_header_map(response.headers()) {
                return status;
            }
            match response.body_mut().frame().await.map(|frame| frame.map(hyper::body::Frame::into_trailers)) {
                Some(Ok(Ok(trailers))) => Status::from_header_map(&trailers).unwrap_or_else(|| Status::unknown("no status")),
                // A first message: it was let in.
                Some(Ok(Err(_))) => Status::new(Code::Ok, ""),
                Some(Err(error)) => Status::unavailable(error.to_string()),
                None => Status::unavailable("no status"),
            }
        };
        // A stream that is quiet was let in, too; but every stream of an agent begins with something, so that this is a failure.
        tokio::time::timeout(LIMIT, answer).await.unwrap_or_else(|_| Status::deadline_exceeded(format!("{path} is not answered")))
    }
}

/// Whether an agent says anything to a client without a certificate that trusts its CA.
pub async fn hears_nobody(address: SocketAddr, pki: &Pki) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca.cert_pem().as_bytes()).expect("the CA")).expect("a root");
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let talk = async {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        // The client's handshake is over before the server has looked: what counts is whether it answers.
        stream.write_all(PREFACE).await?;
        stream.flush().await?;
        stream.read_u8().await
    };
    tokio::time::timeout(LIMIT, talk).await.expect("an answer or the end").is_err()
}
