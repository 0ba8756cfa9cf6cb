//! A client of the Kubernetes API that shows what is really sent and answered: paths and JSON, without types.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::ring, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::Value;
use tokio::{net::TcpStream, task::AbortHandle, time::timeout};
use tokio_rustls::TlsConnector;

use super::api_server::User;

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeError {
    /// The HTTP status; 0 where there was no answer.
    pub code: u16,
    /// The reason that Kubernetes gives: `NotFound`, `Conflict`, `Invalid`, ... Empty where there is none.
    pub reason: String,
    /// What it says.
    pub message: String,
}

impl KubeError {
    fn no_answer(error: impl fmt::Display) -> Self {
        Self { code: 0, reason: String::new(), message: error.to_string() }
    }

    fn answered(code: StatusCode, body: &[u8]) -> Self {
        let status: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |key: &str| status[key].as_str().map(str::to_owned);
        let message = text("message").unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
        Self { code: code.as_u16(), reason: text("reason").unwrap_or_default(), message }
    }
}

impl fmt::Display for KubeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.reason, self.message)
    }
}

impl std::error::Error for KubeError {}

/// A client as one user. Each call has a connection of its own, so that a restarted server is no special case.
#[derive(Clone)]
pub struct Kube {
    server: SocketAddr,
    tls: TlsConnector,
    token: Option<String>,
}

impl Kube {
    /// A client that trusts a CA, as a user.
    pub fn new(server: SocketAddr, ca: &str, user: &User) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("the CA")).expect("a root");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        let (config, token) = match user {
            User::Certificate { cert, key, .. } => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("a certificate");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
                (config.with_client_auth_cert(vec![cert], key).expect("credentials"), None)
            }
            User::Token { token, .. } => (config.with_no_client_auth(), Some(token.clone())),
        };
        Self { server, tls: Arc::new(config).into(), token }
    }

    /// The object or list at a path: `/api/v1/namespaces/default`.
    ///
    /// # Errors
    /// What was answered, or that nothing was.
    pub async fn get(&self, path: &str) -> Result<Value, KubeError> {
        self.json(Method::GET, path, "", None).await
    }

    /// What is at a path, as it is: `/readyz?verbose`, `/metrics`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn text(&self, path: &str) -> Result<String, KubeError> {
        let body = self.call(Method::GET, path, "", None).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Makes an object in the collection at a path.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, KubeError> {
        self.json(Method::POST, path, "application/json", Some(object)).await
    }

    /// Makes many objects in the collection at a path, one after the other over one connection.
    ///
    /// # Errors
    /// As [`Self::get`], at the first that is refused.
    pub async fn create_all(&self, path: &str, objects: impl IntoIterator<Item = Value>) -> Result<(), KubeError> {
        let (mut sender, _connection) = self.connect().await?;
        for object in objects {
            let request = self.request(Method::POST, path, "application/json", Some(&object))?;
            sender.ready().await.map_err(KubeError::no_answer)?;
            let response = sender.send_request(request).await.map_err(KubeError::no_answer)?;
            let code = response.status();
            let body = response.into_body().collect().await.map_err(KubeError::no_answer)?.to_bytes();
            if !code.is_success() {
                return Err(KubeError::answered(code, &body));
            }
        }
        Ok(())
    }

    /// Replaces the object at a path; `metadata.resourceVersion` is a precondition.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn replace(&self, path: &str, object: &Value) -> Result<Value, KubeError> {
        self.json(Method::PUT, path, "application/json", Some(object)).await
    }

    /// Merges into the object at a path (RFC 7386).
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value, KubeError> {
        self.json(Method::PATCH, path, "application/merge-patch+json", Some(patch)).await
    }

    /// Server-side apply at an object's path, as a field manager; without `force`, another one's fields are a conflict.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn apply(&self, path: &str, manager: &str, force: bool, object: &Value) -> Result<Value, KubeError> {
        let path = format!("{path}?fieldManager={manager}&force={force}");
        self.json(Method::PATCH, &path, "application/apply-patch+yaml", Some(object)).await
    }

    /// Deletes what is at a path.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn delete(&self, path: &str) -> Result<Value, KubeError> {
        self.json(Method::DELETE, path, "", None).await
    }

    /// The changes of a collection after a resource version; `""` begins with what is there.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn watch(&self, collection: &str, resource_version: &str) -> Result<Events, KubeError> {
        let sign = if collection.contains('?') { '&' } else { '?' };
        let path = format!("{collection}{sign}watch=1&resourceVersion={resource_version}");
        let (response, connection) = self.send(Method::GET, &path, "", None).await?;
        if !response.status().is_success() {
            let code = response.status();
            let body = response.into_body().collect().await.map_err(KubeError::no_answer)?.to_bytes();
            return Err(KubeError::answered(code, &body));
        }
        Ok(Events { body: response.into_body(), text: BytesMut::new(), _connection: connection })
    }

    /// Waits until the object `name` of a collection is as wanted, and returns it. The waiting is a watch, begun anew when it breaks.
    ///
    /// # Panics
    /// After `limit`, with the object as it was seen last.
    pub async fn wait(&self, collection: &str, name: &str, limit: Duration, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        self.wait_for(collection, name, limit, |object| object.is_some_and(&mut wanted)).await.unwrap_or_default()
    }

    /// Waits until there is no object `name` in a collection, like [`Self::wait`].
    ///
    /// # Panics
    /// After `limit`, with the object as it was seen last.
    pub async fn wait_gone(&self, collection: &str, name: &str, limit: Duration) {
        self.wait_for(collection, name, limit, |object| object.is_none()).await;
    }

    async fn wait_for(
        &self,
        collection: &str,
        name: &str,
        limit: Duration,
        mut wanted: impl FnMut(Option<&Value>) -> bool,
    ) -> Option<Value> {
        let selected = format!("{collection}?fieldSelector=metadata.name={name}");
        let mut last = None;
        let seen = async {
            loop {
                let (now, version) = match self.get(&selected).await {
                    Ok(mut list) => (list["items"].get_mut(0).map(Value::take), list["metadata"]["resourceVersion"].take()),
                    Err(error) => {
                        not_for_good(&selected, &error).await;
                        continue;
                    }
                };
                if wanted(now.as_ref()) {
                    return now;
                }
                last = now;
                let mut events = match self.watch(&selected, version.as_str().unwrap_or_default()).await {
                    Ok(events) => events,
                    Err(error) => {
                        not_for_good(&selected, &error).await;
                        continue;
                    }
                };
                while let Some((kind, object)) = events.next().await {
                    last = match kind.as_str() {
                        "ADDED" | "MODIFIED" => Some(object),
                        "DELETED" => None,
                        // Its version is too old: listed anew.
                        _ => break,
                    };
                    if wanted(last.as_ref()) {
                        return last.take();
                    }
                }
            }
        };
        match timeout(limit, seen).await {
            Ok(object) => object,
            Err(_) => panic!("{collection}/{name} is not as wanted after {limit:?}: {last:#?}"),
        }
    }

    async fn json(&self, method: Method, path: &str, kind: &str, body: Option<&Value>) -> Result<Value, KubeError> {
        let answer = self.call(method, path, kind, body).await?;
        serde_json::from_slice(&answer).map_err(|e| KubeError::no_answer(format!("{path}: no JSON: {e}")))
    }

    async fn call(&self, method: Method, path: &str, kind: &str, body: Option<&Value>) -> Result<Bytes, KubeError> {
        let answer = async {
            let (response, _connection) = self.send(method, path, kind, body).await?;
            let code = response.status();
            let body = response.into_body().collect().await.map_err(KubeError::no_answer)?.to_bytes();
            if code.is_success() { Ok(body) } else { Err(KubeError::answered(code, &body)) }
        };
        timeout(LIMIT, answer).await.unwrap_or_else(|_| Err(KubeError::no_answer(format!("{path}: no answer within {LIMIT:?}"))))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Option<&Value>,
    ) -> Result<(Response<Incoming>, Connection), KubeError> {
        let request = self.request(method, path, kind, body)?;
        let (mut sender, connection) = self.connect().await?;
        Ok((sender.send_request(request).await.map_err(KubeError::no_answer)?, connection))
    }

    fn request(&self, method: Method, path: &str, kind: &str, body: Option<&Value>) -> Result<Request<Full<Bytes>>, KubeError> {
        let body = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.server.to_string())
            .header(header::ACCEPT, "application/json, */*;q=0.5")
            .header(header::USER_AGENT, "pvelet-tests");
        if !kind.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(Full::new(body)).map_err(KubeError::no_answer)
    }

    async fn connect(&self) -> Result<(http1::SendRequest<Full<Bytes>>, Connection), KubeError> {
        let tcp = TcpStream::connect(self.server).await.map_err(KubeError::no_answer)?;
        let stream = self.tls.connect(ServerName::from(self.server.ip()), tcp).await.map_err(KubeError::no_answer)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(KubeError::no_answer)?;
        Ok((sender, Connection(tokio::spawn(connection).abort_handle())))
    }
}

/// Returns a moment later where a call may do better next time (a server that restarts is what tests are about), else panics.
async fn not_for_good(path: &str, error: &KubeError) {
    assert!(error.code == 0 || error.code == 410 || error.code >= 429, "{path}: {error}");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Closes a connection when nobody reads from it any more.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The events of a watch.
pub struct Events {
    body: Incoming,
    text: BytesMut,
    _connection: Connection,
}

impl Events {
    /// The next one: its type (`ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK`, `ERROR`) and its object; nothing once the watch has ended.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.text.iter().position(|b| *b == b'\n') {
                let line = self.text.split_to(end);
                self.text.advance(1);
                let mut event: Value = serde_json::from_slice(&line).unwrap_or_else(|e| panic!("an event: {e}"));
                return Some((event["type"].as_str().unwrap_or_default().to_owned(), event["object"].take()));
            }
            match self.body.frame().await? {
                Ok(frame) => self.text.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(_) => return None,
            }
        }
    }
}
