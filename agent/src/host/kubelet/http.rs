//! `/healthz`, over HTTP on loopback.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::{Answer, look};
use crate::error::{Error, Trouble};

/// The most of an answer that is read: a list of what failed has a few hundred bytes.
const LARGEST: usize = 64 * 1024;

/// Asks once, over a connection of its own.
pub(super) async fn healthz(address: SocketAddr, patience: Duration) -> Result<Answer, Error> {
    let late = |_| look(Trouble::Silent, format!("no answer from http://{address}/healthz within {} s", patience.as_secs_f32()));
    timeout(patience, ask(address)).await.map_err(late)?
}

async fn ask(address: SocketAddr) -> Result<Answer, Error> {
    let stream = TcpStream::connect(address).await.map_err(|e| match e.kind() {
        io::ErrorKind::ConnectionRefused => look(Trouble::Refused, format!("nobody listens at {address}")),
        _ => look(Trouble::Failed, format!("no connection to {address}: {e}")),
    })?;
    let garbled = |what: String| look(Trouble::Garbled, format!("{address} gave no answer of HTTP: {what}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| garbled(e.to_string()))?;
    // Ends with this call, however that ends.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let request = Request::get("/healthz").header(header::HOST, address.to_string()).header(header::CONNECTION, "close");
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| Error::Internal(e.to_string()))?;
    let answer = sender.send_request(request).await.map_err(|e| garbled(e.to_string()))?;
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), LARGEST).collect().await.map_err(|e| garbled(e.to_string()))?;
    Ok(Answer { status, body: String::from_utf8_lossy(&body.to_bytes()).trim().to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpSocket},
    };

    use super::*;

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    /// A server that reads a request and says `answer`, once; then the connection ends.
    async fn saying(answer: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let read = stream.read(&mut [0; 4096]).await.unwrap();
            assert!(read > 0);
            let _ = stream.write_all(&answer).await;
        });
        address
    }

    fn trouble(error: &Error) -> Trouble {
        match error {
            Error::Look { trouble, .. } => *trouble,
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn an_answer_is_told_whatever_its_status() {
        let ok = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()).await;
        assert_eq!(healthz(ok, LONG).await.unwrap(), Answer { status: 200, body: "ok".into() });
        let text = "[+]ping ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n";
        let bad = format!("HTTP/1.1 500 Internal Server Error\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        assert_eq!(healthz(saying(bad.into_bytes()).await, LONG).await.unwrap(), Answer { status: 500, body: text.trim().into() });
    }

    #[tokio::test]
    async fn garbage_and_a_connection_that_ends_are_no_answer() {
        for answer in [b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), Vec::new(), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\no".to_vec()] {
            let error = healthz(saying(answer).await, LONG).await.unwrap_err();
            assert_eq!(trouble(&error), Trouble::Garbled, "{error}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_read() {
        let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        answer.resize(LARGEST * 4, b'x');
        assert_eq!(trouble(&healthz(saying(answer).await, LONG).await.unwrap_err()), Trouble::Garbled);
    }

    #[tokio::test]
    async fn who_hangs_is_silent_and_nobody_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // The kernel accepts; nobody answers.
        let error = healthz(address, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(trouble(&error), Trouble::Silent, "{error}");
        // A port that is taken, so that nobody else gets it, and on which nobody listens.
        let taken = TcpSocket::new_v4().unwrap();
        taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = healthz(address, LONG).await.unwrap_err();
        assert_eq!(error.to_string(), format!("nobody listens at {address}"));
        assert_eq!(trouble(&error), Trouble::Refused);
    }
}
