//! The socket.

use std::{fs, os::unix::fs::PermissionsExt};

use nix::unistd::{Uid, setfsuid};
use pvelet_agent::{
    error::{Error, Trouble},
    host::runtime::{ContainerdSocket, Runtime, Sandbox},
};
use pvelet_tests::containerd::{Containerd, PAUSE};

use crate::host::LONG;

#[tokio::test]
async fn a_healthy_containerd_answers_every_question() {
    let containerd = Containerd::start().await;
    let runtime = containerd.runtime();
    let version = runtime.version(LONG).await.unwrap();
    assert_eq!((version.name.as_str(), version.api.as_str()), ("containerd", "v1"));
    let status = runtime.status(LONG).await.unwrap();
    assert_eq!(status.config["sandboxImage"], PAUSE);
    assert!(status.conditions.iter().any(|c| c.kind == "RuntimeReady" && c.status), "{status:?}");
    let image_fs = runtime.image_fs(LONG).await.unwrap();
    assert!(image_fs[0].mountpoint.starts_with(containerd.place().root()), "{image_fs:?}");
    let plugins = runtime.plugins(LONG).await.unwrap();
    assert!(plugins.iter().any(|p| p.id == "cri" && p.error.is_empty()), "{plugins:?}");
    containerd.wait_image(PAUSE, true).await;
    assert!(!runtime.has_image("pvelet.test/none:1", LONG).await.unwrap());

    let id = runtime.run_sandbox(LONG).await.unwrap();
    assert_eq!(runtime.own_sandboxes(LONG).await.unwrap(), [Sandbox { id: id.clone(), ready: true }]);
    runtime.remove_sandbox(&id, LONG).await.unwrap();
    runtime.remove_sandbox(&id, LONG).await.unwrap();
    assert_eq!(runtime.own_sandboxes(LONG).await.unwrap(), []);
}

#[test]
fn a_socket_that_may_not_be_used_is_denied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    // Of threads that are somebody else for file systems: root may everything.
    let nobody = || {
        let _ = setfsuid(Uid::from_raw(65534));
    };
    let found = std::thread::spawn(move || {
        nobody();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(nobody).build().unwrap();
        runtime.block_on(ContainerdSocket::new(path).version(LONG))
    });
    match found.join().unwrap().unwrap_err() {
        Error::Look { trouble, message } => assert_eq!(trouble, Trouble::Denied, "{message}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_connection_is_made_again_after_a_restart() {
    let containerd = Containerd::start().await;
    let runtime = containerd.runtime();
    runtime.version(LONG).await.unwrap();
    for _ in 0..3 {
        assert!(containerd.stop(), "it ends when it is asked to");
        assert!(matches!(runtime.version(LONG).await, Err(Error::Look { trouble: Trouble::Refused | Trouble::Missing, .. })));
        containerd.launch().await.unwrap();
        runtime.version(LONG).await.unwrap();
    }
}
