#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::PathBuf, time::Duration};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use super::{ContainerdSocket, Runtime};
use crate::error::{Error, Trouble};

const LONG: Duration = Duration::from_secs(60);

async fn trouble(runtime: &ContainerdSocket, patience: Duration) -> (Trouble, String) {
    match runtime.version(patience).await.unwrap_err() {
        Error::Look { trouble, message } => (trouble, message),
        other => panic!("{other:?}"),
    }
}

fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.sock");
    (folder, path)
}

/// What listens does this with every connection.
fn listen<F: Future<Output = ()> + Send>(path: &PathBuf, serve: impl Fn(UnixStream) -> F + Send + 'static) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream).await;
        }
    })
}

#[tokio::test]
async fn a_socket_that_is_not_there_or_that_nobody_listens_on() {
    let (_folder, path) = place();
    let runtime = ContainerdSocket::new(&path);
    assert_eq!(trouble(&runtime, LONG).await, (Trouble::Missing, format!("{}: does not exist", path.display())));
    fs::write(&path, "").unwrap();
    assert_eq!(trouble(&runtime, LONG).await, (Trouble::Refused, format!("{}: is no socket", path.display())));
    fs::remove_file(&path).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    let (what, message) = trouble(&runtime, LONG).await;
    assert_eq!(what, Trouble::Refused, "{message}");
    assert!(message.ends_with("no process listens on it"), "{message}");
}

#[tokio::test]
async fn what_is_no_grpc_is_garbled() {
    for garbage in [&b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"[..], b"220 mail.test ESMTP\r\n", &[0xff; 200], &[0; 64]] {
        let (_folder, path) = place();
        let task = listen(&path, move |mut stream| async move {
            let _ = stream.write_all(garbage).await;
            // Read to the end, so that no reset hides what was written.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let (what, message) = trouble(&ContainerdSocket::new(&path), LONG).await;
        assert_eq!(what, Trouble::Garbled, "{message}");
        task.abort();
    }
}

#[tokio::test]
async fn a_listener_that_says_nothing_or_hangs_up_has_not_answered() {
    let (_folder, path) = place();
    let task = listen(&path, |stream| async move {
        std::mem::forget(stream);
    });
    let (what, message) = trouble(&ContainerdSocket::new(&path), Duration::from_millis(50)).await;
    assert_eq!((what, message), (Trouble::Silent, format!("{}: no answer within 50 ms", path.display())));
    task.abort();
    let (_folder, path) = place();
    let task = listen(&path, |stream| async move { drop(stream) });
    let (what, message) = trouble(&ContainerdSocket::new(&path), LONG).await;
    assert_eq!(what, Trouble::Silent, "{message}");
    assert!(message.ends_with("no answer: the connection was cut"), "{message}");
    task.abort();
}

#[tokio::test]
async fn a_socket_that_was_removed_is_missed_though_the_connection_is_open() {
    let (_folder, path) = place();
    let task = listen(&path, |stream| async move {
        std::mem::forget(stream);
    });
    let runtime = ContainerdSocket::new(&path);
    assert_eq!(trouble(&runtime, Duration::from_millis(50)).await.0, Trouble::Silent);
    fs::remove_file(&path).unwrap();
    assert_eq!(trouble(&runtime, LONG).await.0, Trouble::Missing);
    task.abort();
}
